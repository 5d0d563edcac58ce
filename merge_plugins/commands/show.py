"""`merge-plugins show`: one merge method, and a recipe to start from."""

from __future__ import annotations

import argparse
from textwrap import TextWrapper

import yaml

from merge_plugins.commands.example import example
from merge_plugins.commands.facts import brief, needs
from merge_plugins.commands.screen import columns
from merge_plugins.plugins import Method, Parameter, load_plugins, registry


def show_method(options: argparse.Namespace) -> int:
    """Explain one merge method: its parameters, its paper, a recipe to start from."""
    load_plugins(options.plugin)
    method = registry().get(options.method)
    fill = TextWrapper(columns(), subsequent_indent="  ", break_on_hyphens=False)
    lines = [f"{method.name}: {method.summary}"]
    lines += [f"paper: {method.paper}"] if method.paper else []
    lines += [f"takes: {needs(method)}", f"plugin: {method.plugin} {method.version}".strip()]
    lines += [f"{name} is the same: {meaning}" for name, meaning in method.aliases.items()]
    print(*map(fill.fill, lines), sep="\n")
    print(*_parameters(method), sep="\n")
    recipe = yaml.safe_dump(example(method), sort_keys=False, default_flow_style=None)
    print(f"\nA recipe to start from:\n\n{recipe}", end="")
    return 0


def _parameters(method: Method) -> list[str]:
    parameters = method.parameters.values()
    if not parameters:
        return ["\nNo parameters."]
    is_any = any(p.required for p in parameters)
    title = "\nParameters and their defaults"
    return [f"{title}{'; * must be set' * is_any}:", *map(_parameter, parameters)]


def _parameter(parameter: Parameter) -> str:
    alias = f" (also {', '.join(parameter.alias)})" if parameter.alias else ""
    kind = "one per model" if parameter.per_expert else "one for all"
    fill = TextWrapper(columns(), initial_indent=" " * 6, subsequent_indent=" " * 6)
    meaning = fill.fill(f"{parameter.doc or 'no description'}; {kind}")
    return f"  {brief(parameter)}{alias}\n{meaning}"
