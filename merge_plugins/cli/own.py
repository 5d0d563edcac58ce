"""The commands of the engine, and the arguments of each."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path

from merge_plugins.cli.arguments import add_loudness, add_plugin
from merge_plugins.cli.command import Command
from merge_plugins.cli.completion import completed_by

WORK = "merge_plugins.commands"
RECIPE = "a YAML file, its folder, or the short form method=…,base=…,models=a:0.6+b:0.4"
SHELLS = """\
once, in the shell's own file:
  bash  ~/.bashrc:  eval "$(merge-plugins completion bash)"
  zsh   ~/.zshrc, after compinit:  eval "$(merge-plugins completion zsh)"
  fish  merge-plugins completion fish > ~/.config/fish/completions/merge-plugins.fish
"""


def _list(parser: ArgumentParser) -> None:
    meaning = "only methods whose name, description or paper has this word, or matches 'ties*'"
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help=meaning)
    parser.add_argument("--json", action="store_true", help="all that is known of each, as data")
    add_plugin(parser)


def _show(parser: ArgumentParser) -> None:
    method = parser.add_argument("method", metavar="METHOD", help="as 'merge-plugins list' has it")
    completed_by(method, f"{WORK}.completion:method_names")
    add_plugin(parser)


def _new_method(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the method's, like my_method")
    parser.add_argument("folder", metavar="DIR", nargs="?", help="new; by default merge-NAME")


def _check(parser: ArgumentParser) -> None:
    _recipe(parser)
    again = "hash every file again for the digest, whatever hashes are cached"
    parser.add_argument("--verify", action="store_true", help=again)
    parser.add_argument("--json", action="store_true", help="the recipe and its cost, as data")
    add_loudness(parser)


def _plan(parser: ArgumentParser) -> None:
    _recipe(parser)
    each = "a line for each tensor, not for each group of like ones"
    parser.add_argument("--all", action="store_true", help=each)
    inputs = "inputs and parameters of each tensor, as data"
    parser.add_argument("--json", action="store_true", help=inputs)
    _trust(parser)
    add_loudness(parser)


def _compare(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help=f"models; or one recipe: {RECIPE}")
    add("--base", metavar="MODEL", help="what they were fine-tuned from; a recipe names its own")
    add("--plot", type=Path, metavar="FILE.png", help="heat maps of layers by modules, one page")
    add("--json", action="store_true", help="all numbers, of each layer and module type")
    meaning = "singular directions to measure; 0 for none, which saves most of the time"
    add("--directions", type=int, default=16, metavar="N", help=meaning)
    add_plugin(parser)
    add_loudness(parser)


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
    add_loudness(parser)


def _completion(parser: ArgumentParser) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = SHELLS
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that completes")


def _recipe(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    add_plugin(parser)


def _trust(parser: ArgumentParser) -> None:
    meaning = "run Python code that came with a model or a task"
    parser.add_argument("--trust-remote-code", action="store_true", help=meaning)


GROUPS: Mapping[str, tuple[Command, ...]] = {
    "first steps": (),
    "merge methods": (
        Command(
            "list",
            "List merge methods, their parameters, and plugins that failed.",
            f"{WORK}.methods:list_methods",
            _list,
        ),
        Command(
            "show",
            "Explain a method: its parameters, its paper, a recipe of it.",
            f"{WORK}.show:show_method",
            _show,
        ),
        Command(
            "new-method",
            "Write a package with a merge method of your own and its test.",
            f"{WORK}.new_method:new_method",
            _new_method,
        ),
    ),
    "merges": (
        Command(
            "compare",
            "Compare models before merging: sizes, agreement, differences.",
            f"{WORK}.compare:compare_models",
            _compare,
        ),
        Command(
            "check",
            "Check a recipe and its models without reading a weight.",
            f"{WORK}.check:check",
            _check,
        ),
        Command(
            "plan",
            "Show which tensors make each merged tensor, and how.",
            f"{WORK}.plan:show_plan",
            _plan,
        ),
        Command(
            "save",
            "Write the merge as a checkpoint with tokenizer and model card.",
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
            "Write a folder without weights that harnesses load as the merge.",
            f"{WORK}.mount:mount_merge",
            _mount,
        ),
    ),
    "scores": (),
    "data and tasks": (),
    "shell": (
        Command(
            "completion",
            "Complete commands, options, methods and files in your shell.",
            f"{WORK}.completion:print_code",
            _completion,
        ),
    ),
}
"""Our commands under the headings of the help, in its order; adapters add theirs to them."""
