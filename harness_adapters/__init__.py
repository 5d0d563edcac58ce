"""Thin adapters, one per harness. They import `merge_plugins`; it never imports them."""

from pathlib import Path

_here = Path(__file__).parent
if not (_here / "tasks").is_dir():
    # A wheel holds tasks/ inside this package, a checkout beside it. Namespace lookup along this
    # path makes `harness_adapters.tasks` the right folder in both, also for those who only ask
    # importlib where it is, as lm-eval does.
    __path__.append(str(_here.parent))
