"""The demo's held-out test sets; lm-eval pours model arguments and metadata into each function."""

from datasets import Dataset

from merge_plugins.demo.skills import held_out


def math(**_: object) -> dict[str, Dataset]:
    """Word problems in the alpaca prompt."""
    return _test_split("math")


def code(**_: object) -> dict[str, Dataset]:
    """One-line Python functions to complete."""
    return _test_split("code")


def sea(**_: object) -> dict[str, Dataset]:
    """Numbers to write out or read in Indonesian, Thai and Vietnamese."""
    return _test_split("sea")


def _test_split(skill: str) -> dict[str, Dataset]:
    return {"test": Dataset.from_list([example._asdict() for example in held_out(skill)])}
