"""The work of each command, a file for what belongs together: imported by name when it runs."""
