"""The demo's questions to test and to tune on; lm-eval pours arguments into each function."""

from datasets import Dataset

from merge_plugins.demo.skills import held_out, tuning


def math(**_: object) -> dict[str, Dataset]:
    """Word problems in the alpaca prompt."""
    return _test_split("math")


def code(**_: object) -> dict[str, Dataset]:
    """One-line Python functions to complete."""
    return _test_split("code")


def sea(**_: object) -> dict[str, Dataset]:
    """Numbers to write out or read in Indonesian, Thai and Vietnamese."""
    return _test_split("sea")


def tune_math(**_: object) -> dict[str, Dataset]:
    """Word problems that no test set has."""
    return _validation_split("math")


def tune_code(**_: object) -> dict[str, Dataset]:
    """Functions that no test set has."""
    return _validation_split("code")


def tune_sea(**_: object) -> dict[str, Dataset]:
    """Numbers that no test set has."""
    return _validation_split("sea")


def _validation_split(skill: str) -> dict[str, Dataset]:
    return {"validation": Dataset.from_list([example._asdict() for example in tuning(skill)])}


def _test_split(skill: str) -> dict[str, Dataset]:
    return {"test": Dataset.from_list([example._asdict() for example in held_out(skill)])}
