"""Merge classifiers two by two and score each pair on the first one's task: `merge-plugins pairs`.

The recipe names the models and their tasks; every ordered pair of them is merged as the recipe says
and scored by lm-eval, in one process. Beside them stands what each model scores alone.
"""

from __future__ import annotations

import argparse

from harness_adapters.commands.report_table import FORMATS
from merge_plugins.cli import takes
from merge_plugins.cli.arguments import add_plugin


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a YAML file whose models have task:")
    add("--format", choices=FORMATS, default="markdown")
    add("--batch_size", metavar="N", help="as of lm-eval, and so are all below")
    add("--device")
    add("--model_args", metavar="NAME=VALUE,…")
    add("--limit", type=float)
    add("--include_path", metavar="DIR")
    add_plugin(parser)


@takes(_arguments, group="scores")
def main(options: argparse.Namespace) -> int:
    """Merge classifiers two by two, and score each pair on its tasks."""
    given = {**vars(options)}
    recipe, shown = given.pop("recipe"), given.pop("format")
    from harness_adapters.commands.pairs_table import table_of_pairs  # seconds: imports torch
    from merge_plugins.plugins import load_plugins

    load_plugins(given.pop("plugin"))
    print(FORMATS[shown](table_of_pairs(recipe, given)))
    return 0
