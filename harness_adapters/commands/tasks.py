"""Name the tasks that come along, and where they are: `merge-plugins tasks`.

lm-eval knows them by these names. OpenCompass is given their folder:

    opencompass --config-dir "$(merge-plugins tasks --opencompass)" --datasets sea …
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness_adapters.lm_eval.discovery import task_folders
from merge_plugins.cli import takes
from merge_plugins.commands.screen import columns

Tasks = Mapping[str, Sequence[str]]
"""Names of groups, each with those of its parts; a task has no parts."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    where = "print only the folder for OpenCompass's --config-dir"
    parser.add_argument("--opencompass", action="store_true", help=where)


@takes(_arguments, group="data and tasks")
def main(options: argparse.Namespace) -> int:
    """List the tasks that come along, and their OpenCompass folder."""
    (folder,) = (Path(name).resolve() for name in task_folders())
    configs = folder / "opencompass" / "configs"
    if options.opencompass:
        print(configs)
        return 0
    for line in (*_of_lm_eval(folder), *_of_opencompass(configs)):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        print(textwrap.fill(line, columns(), subsequent_indent=indent, break_on_hyphens=False))
    return 0


def lm_eval_tasks(folder: Path) -> Tasks:
    """Read the names of the groups and tasks of a folder, without lm-eval."""
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        content = yaml.load(file.read_text(encoding="utf-8"), _Names)
        group = content.get("group")
        parts = [_name(part) for part in content["task"]] if group else []
        found[group or content["task"]] = parts
    return found


def opencompass_sets(configs: Path) -> list[str]:
    """List the names of OpenCompass's --datasets: collections, then single sets."""
    collections = sorted(file.stem for file in configs.glob("dataset_collections/*.py"))
    single = sorted(configs.glob("datasets/*/*.py"))
    versions = {file.stem.rpartition("_")[0] for file in single}  # …_gen_a8145d is of …_gen
    return [*collections, *(file.stem for file in single if file.stem in versions)]


def _of_lm_eval(folder: Path) -> Iterator[str]:
    yield "lm_eval --tasks NAME:"
    for room in sorted(file.parent for file in folder.glob("*/README.md")):
        title = (room / "README.md").read_text(encoding="utf-8").partition("\n")[0].strip("# ")
        yield from ("", f"  {title}")
        tasks = lm_eval_tasks(room)
        for group, parts in tasks.items():
            if parts:
                yield f"    {group}: {', '.join(parts)}"
        known = {part for parts in tasks.values() for part in parts}
        alone = [name for name, parts in tasks.items() if not parts and name not in known]
        if alone:
            yield f"    {', '.join(alone)}"


def _of_opencompass(configs: Path) -> Iterator[str]:
    yield ""
    yield 'opencompass --config-dir "$(merge-plugins tasks --opencompass)" --datasets NAME:'
    yield f"    {', '.join(opencompass_sets(configs))}"


def _name(part: Any) -> str:
    return part if isinstance(part, str) else part["task"]


class _Names(yaml.SafeLoader):
    """Reads what needs no code: a task's ``!function`` is none of its names."""


_Names.add_multi_constructor("!", lambda *_: None)
