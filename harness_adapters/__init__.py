"""Adapters: one module or folder per harness, ``commands`` of the CLI, ``bridges`` to other tools.

They import `merge_plugins`; it never imports them.
"""

from pathlib import Path

_here = Path(__file__).parent
if not (_here / "tasks").is_dir():
    # A wheel holds tasks/ inside this package and a checkout has a link to it here, which
    # OpenCompass's `read_base` needs. On a file system without links, namespace lookup along this
    # path resolves `harness_adapters.tasks` to the right folder all the same.
    __path__.append(str(_here.parent))
