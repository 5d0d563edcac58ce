"""`merge-plugins list`: the merge methods of every plugin."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from fnmatch import fnmatch
from textwrap import TextWrapper
from typing import Any

from merge_plugins._version import __version__
from merge_plugins.commands.completion import remember
from merge_plugins.commands.facts import brief, family, needs
from merge_plugins.commands.screen import columns
from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.plugins import Method, load_plugins, registry


def list_methods(options: argparse.Namespace) -> int:
    """List the merge methods, their parameters, and plugins that failed to load."""
    known = registry()
    known.load_bridges()
    remember(known.named)  # of plugins that are installed
    load_plugins(options.plugin)
    methods = [*known.methods.values()]
    if options.pattern:
        methods = [method for method in methods if _matches(method, options.pattern)]
        if not methods:
            near = did_you_mean(options.pattern, known.named) or "."
            raise MergeError(f"no merge method is like {options.pattern!r}{near} "
                             "'merge-plugins list' shows them all")  # fmt: skip
    if options.json:
        broken = {name: f"{type(exc).__name__}: {exc}" for name, exc in known.broken.items()}
        print(json.dumps({"methods": [*map(_as_json, methods)], "broken": broken}, indent=2))
        return 0
    print(_table(methods))
    end = "* must be set. 'merge-plugins show METHOD' explains a method and its parameters."
    print("", TextWrapper(columns()).fill(end), sep="\n")
    for name, exc in known.broken.items():
        print(f"BROKEN {name}: {type(exc).__name__}: {exc}")
    return 0


def _matches(method: Method, pattern: str) -> bool:
    """Whether a word is in what the list has of a method, or a pattern matches one of its names."""
    word, names = pattern.lower(), (method.name, *method.aliases)
    text = " ".join([*names, method.summary, method.paper, family(method)]).lower()
    return word in text or any(fnmatch(name.lower(), word) for name in names)


def _table(methods: Iterable[Method]) -> str:
    """Write methods under the headings of their families, in the registry's order of these."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        groups.setdefault(family(method), []).append(method)
    width = max(len(method.name) for group in groups.values() for method in group) + 2
    return "\n\n".join(
        "\n".join([f"{title}:", *(line for method in group for line in _lines(method, width))])
        for title, group in groups.items()
    )


def _lines(method: Method, width: int) -> list[str]:
    indent = " " * (width + 2)
    fill = TextWrapper(columns(), initial_indent=indent, subsequent_indent=indent)
    parameters = ", ".join(map(brief, method.parameters.values()))
    texts = [method.summary, f"{needs(method)}{'; ' if parameters else ''}{parameters}"]
    texts += [f"also named {', '.join(method.aliases)}"] if method.aliases else []
    lines = [line for text in texts for line in fill.wrap(text)]
    return [f"  {method.name:{width}}{lines[0].lstrip()}", *lines[1:]]


def _as_json(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "family": family(method),
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
