"""The `merge-plugins` command. Adapters add commands by entry point: see `ADAPTER_COMMANDS`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import Any

from merge_plugins import identity
from merge_plugins._version import __version__
from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError, UntrustedCodeError
from merge_plugins.plugins import Method, Parameter, registry
from merge_plugins.recipe import Recipe, read_recipe

ADAPTER_COMMANDS = "merge_plugins.commands"
"""Entry points in this group are functions that take the arguments after their name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 1 when the recipe cannot be merged."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminated_as_exit():
            return _run(given)
    except MergeError as exc:
        print(f"merge-plugins: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `merge-plugins plan … | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("merge-plugins: interrupted", file=sys.stderr)
        return 130


def _run(given: Sequence[str]) -> int:
    adapters = {point.name: point for point in entry_points(group=ADAPTER_COMMANDS)}
    if given and given[0] in adapters:
        command: Callable[[Sequence[str]], int] = adapters[given[0]].load()
        return command(given[1:])
    options = _parser(adapters).parse_args(given)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit`, so that what is half written is removed before the end.

    Only where nobody else handles it, and for the length of the block: a library leaves signals
    alone.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the removal
        raise SystemExit(128 + number)

    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _parser(adapters: dict[str, EntryPoint]) -> argparse.ArgumentParser:
    extra = ", ".join(sorted(adapters))
    parser = argparse.ArgumentParser(
        prog="merge-plugins",
        description="Merge language models on the fly.",
        epilog=f"Commands of installed adapters: {extra}." if extra else None,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        doc = (run.__doc__ or "").partition("\n")[0]
        added = commands.add_parser(name, help=doc, description=doc)
        added.set_defaults(run=run)
        return added

    def trusted(command: argparse.ArgumentParser) -> None:
        meaning = "run Python code that came with a model or a task"
        command.add_argument("--trust-remote-code", action="store_true", help=meaning)

    command("list", list_methods).add_argument("--json", action="store_true")
    command("show", show_method).add_argument("method", metavar="METHOD")
    recipe = "a YAML file, its folder, or the short form method=…,base=…,models=a:0.6+b:0.4"
    checker = command("check", check)
    checker.add_argument("recipe", metavar="RECIPE", help=recipe)
    again = "hash every file again for the digest, whatever hashes are cached"
    checker.add_argument("--verify", action="store_true", help=again)
    planner = command("plan", show_plan)
    planner.add_argument("recipe", metavar="RECIPE", help=recipe)
    planner.add_argument("--json", action="store_true")
    trusted(planner)
    saver = command("save", save_merge)
    saver.add_argument("recipe", metavar="RECIPE", help=recipe)
    saver.add_argument("folder", metavar="DIR")
    saver.add_argument("--max-shard-size", default="5GB", help="largest file, e.g. 500MB")
    trusted(saver)
    mounter = command("mount", mount_merge)
    mounter.add_argument("recipe", metavar="RECIPE", help=recipe)
    mounter.add_argument("folder", metavar="DIR")
    trusted(mounter)
    return parser


def list_methods(options: argparse.Namespace) -> int:
    """List the merge methods, their parameters, and plugins that failed to load."""
    known = registry()
    known.load_bridges()
    if options.json:
        methods = [_as_json(method) for method in known.methods.values()]
        broken = {name: f"{type(exc).__name__}: {exc}" for name, exc in known.broken.items()}
        print(json.dumps({"methods": methods, "broken": broken}, indent=2))
        return 0
    width = max(map(len, known.methods))
    for name, method in known.methods.items():
        print(f"{name:{width}}  {method.summary}")
        parameters = "  ".join(_brief(p) for p in method.parameters.values())
        source = "" if method.version == "" else f"  [{method.plugin} {method.version}]"
        print(f"{'':{width}}  {_needs(method)}{'; ' + parameters if parameters else ''}{source}")
        if method.aliases:
            print(f"{'':{width}}  also named {', '.join(method.aliases)}")
    for name, exc in known.broken.items():
        print(f"BROKEN {name}: {type(exc).__name__}: {exc}")
    return 0


def show_method(options: argparse.Namespace) -> int:
    """Explain one merge method: what it does, its parameters, its paper."""
    method = registry().get(options.method)
    print(f"{method.name}: {method.summary}")
    for line in (f"paper: {method.paper}" if method.paper else "", f"takes: {_needs(method)}"):
        if line:
            print(line)
    for p in method.parameters.values():
        alias = f" (also {', '.join(p.alias)})" if p.alias else ""
        kind = "one per model" if p.per_expert else "one for all"
        print(f"  {_brief(p)}{alias}\n      {p.doc or 'no description'}; {kind}")
    for name, meaning in method.aliases.items():
        print(f"{name} is the same: {meaning}")
    source = f"{method.plugin} {method.version}".strip()
    print(f"plugin: {source}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Check a recipe and its models without reading a weight, or running code that came along."""
    from merge_plugins.outputs.fits import fits, has_tokenizer  # seconds: imports transformers

    plan = open_merge(read_recipe(options.recipe).trusting(None)).plan
    fits(plan)
    has_tokenizer(plan)
    if options.verify:
        identity.verify(plan.recipe)
    try:
        print(f"{plan}. Digest {identity.digest(plan.recipe)}.")
    except UntrustedCodeError as exc:
        print(f"{plan}. Not checked, and so no digest: {exc}.")
    return 0


def show_plan(options: argparse.Namespace) -> int:
    """Show which tensors make each merged tensor, and with which parameters."""
    plan = open_merge(_recipe(options)).plan
    if options.json:
        print(json.dumps(plan.as_dict(), indent=2))
        return 0
    for name, tensor in plan.tensors.items():
        shown = ", ".join(f"{key}={_plain(value)}" for key, value in tensor.parameters.items())
        if tensor.kernel is None:
            shown = "copied" if len(tensor.stored) == 1 else "copied: all models must agree"
        print(f"{name} {list(tensor.shape)} {_dtype(tensor.dtype)}  {shown}")
    return 0


def save_merge(options: argparse.Namespace) -> int:
    """Write the merge as a checkpoint, with tokenizer, recipe and model card."""
    import logging

    from merge_plugins.outputs.save import save

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(save(_recipe(options), options.folder, max_shard_size=options.max_shard_size))
    return 0


def mount_merge(options: argparse.Namespace) -> int:
    """Write a folder without weights that harnesses load as if it were the saved merge."""
    from merge_plugins.outputs.mount import mount

    recipe = _recipe(options)
    folder = mount(recipe, options.folder, trust_remote_code=options.trust_remote_code)
    print(f"{folder}: {identity.label(recipe)}. Load it with trust_remote_code=True.")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    return read_recipe(options.recipe).trusting(options.trust_remote_code)


def _needs(method: Method) -> str:
    low, high = method.min_experts, method.max_experts
    count = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
    models = "model" if count == "1" else "models"
    data = ""
    if method.takes_data:
        is_optional = callable(method.stats) and method.needs_data is not True
        data = f" and {'for some settings ' if is_optional else ''}calibration data"
    base = "a base and " if method.needs_base else "perhaps a base and " * method.takes_base
    return f"{base}{count} {models}{data}"


def _brief(parameter: Parameter) -> str:
    return parameter.name + ("" if parameter.required else f"={_plain(parameter.default)}")


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _as_json(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "paper": method.paper,
        "aliases": dict(method.aliases),
        "plugin": method.plugin,
        "version": method.version or __version__,
        "needs_base": method.needs_base,
        "takes_base": method.needs_base or method.takes_base,
        "min_experts": method.min_experts,
        "max_experts": method.max_experts,
        "takes_data": method.takes_data,
        "parameters": [
            {
                "name": p.name,
                "default": None if p.required else p.default,
                "required": p.required,
                "per_model": p.per_expert,
                "alias": list(p.alias),
                "meaning": p.doc,
            }
            for p in method.parameters.values()
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
