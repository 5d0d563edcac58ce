"""Find the best merge of a space: `merge-plugins search search.yaml DIR`.

search.yaml is a recipe in which values vary ({low, high} or {choices}), plus search: and model:.
To go on with a search that ended or was killed, run the same command again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from merge_plugins.cli import takes
from merge_plugins.cli.arguments import add_plugin
from merge_plugins.signals import interrupts_end_it


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("file", nargs="?", metavar="search.yaml", help="the recipe, what varies in it, the search")
    add("folder", nargs="?", type=Path, metavar="DIR", help="for the ledger and the report")
    add("--workers", default="1", metavar="N", help="processes, or auto: one per GPU")
    add("--objective", default="lm-eval", metavar="WHAT",
        help="lm-eval (the default), mteb, loss=DATA, entropy=DATA, file.py:function, or a command "
        "with {folder}; the last two run that code")  # fmt: skip
    add("--storage", metavar="URL", help="postgresql://…, for hosts that share no folder")
    add("--on-test", action="store_true", help="tune on a benchmark's test split all the same")
    add("--trust-remote-code", action="store_true", help="run code that came with a model or task")
    add_plugin(parser)
    add("--show", type=Path, metavar="DIR", help="write the report of a search again")
    add("--init", metavar="RECIPE", help="write a search.yaml with ranges for the recipe's method")
    add("--tasks", default="gsm8k", help="tasks that --init writes, joined by commas")
    add("--demo", action="store_true", help="search through merges of tiny models: a minute")
    add("--as-worker", action="store_true", help=argparse.SUPPRESS)


@takes(_arguments, group="merges")
def main(options: argparse.Namespace) -> int:
    """Find the best merge of a space of recipes, without a checkpoint."""
    with interrupts_end_it():
        from harness_adapters.commands.search_run import run  # seconds: imports torch

    return run(options)
