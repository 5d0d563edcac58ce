"""``accelerate launch -m harness_adapters.bigcode``."""

import sys

from harness_adapters.bigcode.run import main

if __name__ == "__main__":
    sys.exit(main())
