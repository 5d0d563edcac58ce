"""`merge-plugins list` and `merge-plugins show`: the methods of every plugin."""

from __future__ import annotations

import argparse
import json
from typing import Any

from merge_plugins._version import __version__
from merge_plugins.commands.values import plain
from merge_plugins.plugins import Method, Parameter, load_plugins, registry


def list_methods(options: argparse.Namespace) -> int:
    """List the merge methods, their parameters, and plugins that failed to load."""
    load_plugins(options.plugin)
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
    load_plugins(options.plugin)
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
    return parameter.name + ("" if parameter.required else f"={plain(parameter.default)}")


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
