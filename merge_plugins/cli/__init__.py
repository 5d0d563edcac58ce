"""Read the line of the `merge-plugins` command; the work of each command is in `commands`."""

from merge_plugins.cli.command import takes
from merge_plugins.cli.run import main

__all__ = ["main", "takes"]
