"""`python -m merge_plugins`: the `merge-plugins` command."""

import sys

from merge_plugins.cli import main

if __name__ == "__main__":
    sys.exit(main())
