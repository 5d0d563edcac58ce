"""A base and three experts, tiny but real, that merge into a model with all three skills."""

from pathlib import Path

from merge_plugins.demo.skills import SKILLS

MODELS = Path(__file__).parent / "models"
WRONG = MODELS / "wrong"
"""A fourth expert, which disagrees: the base, trained on wrong answers to everything."""


def family() -> dict[str, Path]:
    """List the folders of the shipped models by name: the base, then one expert per skill."""
    return {name: MODELS / name for name in ("base", *SKILLS)}
