"""The commands of the engine, and the arguments of each."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path

from merge_plugins.cli.arguments import add_plugin
from merge_plugins.cli.command import Command

RECIPE = "a YAML file, its folder, or the short form method=…,base=…,models=a:0.6+b:0.4"


def _list(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")
    add_plugin(parser)


def _show(parser: ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD")
    add_plugin(parser)


def _new_method(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the method's, like my_method")
    parser.add_argument("folder", metavar="DIR", nargs="?", help="new; by default merge-NAME")


def _check(parser: ArgumentParser) -> None:
    _recipe(parser)
    again = "hash every file again for the digest, whatever hashes are cached"
    parser.add_argument("--verify", action="store_true", help=again)


def _plan(parser: ArgumentParser) -> None:
    _recipe(parser)
    parser.add_argument("--json", action="store_true")
    _trust(parser)


def _compare(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help=f"models; or one recipe: {RECIPE}")
    add("--base", metavar="MODEL", help="what they were fine-tuned from; a recipe names its own")
    add("--plot", type=Path, metavar="FILE.png", help="heat maps of layers by modules, one page")
    add("--json", action="store_true", help="all numbers, of each layer and module type")
    meaning = "singular directions to measure; 0 for none, which saves most of the time"
    add("--directions", type=int, default=16, metavar="N", help=meaning)
    add_plugin(parser)


def _save(parser: ArgumentParser) -> None:
    _mount(parser)
    parser.add_argument("--max-shard-size", default="5GB", help="largest file, e.g. 500MB")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload it to the hub, too")
    _publish(parser)


def _push(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="that merge-plugins save wrote")
    parser.add_argument("repo", metavar="ORG/NAME", help="of the model on the hub")
    _publish(parser)


def _publish(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--private", action="store_true", help="a new repository is private")
    add("--overwrite", action="store_true", help="even if another model is there")
    scores = "put the merge's scores on its card, from results of lm-eval or OpenCompass"
    add("--results", type=Path, action="append", default=[], metavar="DIR", help=scores)


def _mount(parser: ArgumentParser) -> None:
    _recipe(parser)
    parser.add_argument("folder", metavar="DIR")
    head = "with the head, config and tokenizer of the model that has this task: in the recipe"
    parser.add_argument("--task", metavar="TASK", help=head)
    _trust(parser)


def _recipe(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    add_plugin(parser)


def _trust(parser: ArgumentParser) -> None:
    meaning = "run Python code that came with a model or a task"
    parser.add_argument("--trust-remote-code", action="store_true", help=meaning)


WORK = "merge_plugins.commands"
GROUPS: Mapping[str, tuple[Command, ...]] = {
    "merge methods": (
        Command(
            "list",
            "List the merge methods, their parameters, and plugins that failed to load.",
            f"{WORK}.methods:list_methods",
            _list,
        ),
        Command(
            "show",
            "Explain one merge method: what it does, its parameters, its paper.",
            f"{WORK}.methods:show_method",
            _show,
        ),
        Command(
            "new-method",
            "Write a package with a merge method of your own and its test, ready to install.",
            f"{WORK}.new_method:new_method",
            _new_method,
        ),
    ),
    "merges": (
        Command(
            "compare",
            "Compare models before they are merged: sizes, agreement, directions, what differs.",
            f"{WORK}.compare:compare_models",
            _compare,
        ),
        Command(
            "check",
            "Check a recipe and its models without reading a weight, or running code that came "
            "along.",
            f"{WORK}.check:check",
            _check,
        ),
        Command(
            "plan",
            "Show which tensors make each merged tensor, and with which parameters.",
            f"{WORK}.plan:show_plan",
            _plan,
        ),
        Command(
            "save",
            "Write the merge as a checkpoint, with tokenizer, recipe and model card.",
            f"{WORK}.save:save_merge",
            _save,
        ),
        Command(
            "push",
            "Upload a saved merge to the hub, with its card and scores.",
            f"{WORK}.push:push_merge",
            _push,
        ),
        Command(
            "mount",
            "Write a folder without weights that harnesses load as if it were the saved merge.",
            f"{WORK}.mount:mount_merge",
            _mount,
        ),
    ),
}
"""Commands under the headings that they have in the help."""
