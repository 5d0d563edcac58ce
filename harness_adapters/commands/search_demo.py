"""The demo of a search."""


def run() -> int:
    """Search."""
    return 0
