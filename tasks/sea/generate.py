"""Writes the South-East-Asian tasks of both harnesses from suite.py and prompts.yml.

After a change there: python tasks/sea/generate.py. A test compares what it would write with the
files that are there.
"""

from __future__ import annotations

from pathlib import Path

from harness_adapters.tasks.sea import lm_eval_tasks, opencompass_configs

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "opencompass" / "configs"


def files() -> dict[Path, str]:
    """Return the text of every file."""
    tasks = {HERE / file: text for file, text in lm_eval_tasks.files()}
    return tasks | {CONFIGS / file: text for file, text in opencompass_configs.files()}


def main() -> None:
    """Write every file, and remove those that no longer belong to the suite."""
    wanted = files()
    for file in (*HERE.glob("*.yaml"), *CONFIGS.glob("datasets/sea_*/*.py")):
        if file not in wanted:
            file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
