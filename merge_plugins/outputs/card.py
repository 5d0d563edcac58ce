"""Write the recipe and model card of a published merge, in the hub's format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from merge_plugins.identity import digest
from merge_plugins.outputs.card_text import kind, licensing, scored, usage
from merge_plugins.outputs.licenses import UNKNOWN, License, license_of, strictest
from merge_plugins.outputs.needs import said
from merge_plugins.outputs.scores import Score, as_results
from merge_plugins.planning import Plan
from merge_plugins.recipe import Recipe, Reference
from merge_plugins.recipe.references import files, written


def is_local(ref: str) -> bool:
    """Whether a reference is a folder on this machine and not a hub id."""
    return Path(ref).is_absolute()


def portable(recipe: Recipe, folder: Path, *, carried: bool = False) -> str:
    """Format the recipe as YAML, with local models relative to the recipe's own ``folder``.

    ``carried``: whether the folder has the plugins that are no packages.
    """

    def relative(ref: str) -> str:
        if not is_local(ref):
            return ref
        try:
            return Path(os.path.relpath(ref, folder)).as_posix()  # for whoever gets the folder
        except ValueError:  # on another drive
            return ref

    content = recipe.as_dict(relative)
    needed = "".join(f"# {line}\n" for line in said(recipe, carried=carried))
    return needed + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def hub_id(ref: str) -> str | None:
    """Return a model's id on the hub; None for a folder that is not in the hub's cache."""
    if not is_local(ref):
        return ref.partition("@")[0]
    folder = Path(ref)
    repo = folder.parent.parent.name if folder.parent.name == "snapshots" else ""
    return repo.removeprefix("models--").replace("--", "/") if repo.startswith("models--") else None


def shown(ref: str) -> str:
    """Shorten a local path to its last part; a hub id stays."""
    if not is_local(ref):
        return ref
    found = hub_id(ref)
    return f"{found}@{Path(ref).name}" if found else Path(ref).name


def _line(ref: Reference) -> str:
    """Format a model reference on one line."""
    reference = written(ref, shown)
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)


def model_card(
    plan: Plan,
    name: str,
    settled: Mapping[str, Any],
    scores: Sequence[Score] = (),
    *,
    carried: bool = False,
) -> str:
    """Compose README.md: metadata for the hub, models, licenses, usage, scores and recipe.

    ``name``: its id on the hub, or its folder. ``settled``: values that the method computed, see
    `merge_plugins.engine.Merge.settled`. ``carried``: whether the folder holds the recipe and no
    weights, and the plugins that are no packages.
    """
    recipe, method = plan.recipe, plan.method
    sources = dict.fromkeys(file for ref in recipe.references for file in files(ref))
    licenses = {shown(ref): license_of(ref) for ref in sources}
    models = "\n".join(f"- {_line(ref)}" for ref in plan.experts)
    base = f"Base: {_line(recipe.base_model)}.\n\n" if recipe.base_model else ""
    paper = f" ({method.paper})" if method.paper else ""
    plugins = "".join(f"{line}\n\n" for line in said(recipe, carried=carried))
    content = yaml.safe_dump(recipe.as_dict(shown), sort_keys=False, allow_unicode=True)
    data = metadata(plan, name, sources, licenses.values(), scores)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
        f"A merge by `{method.name}`{paper} of\n\n{models}\n\n{base}{plugins}"
        f"{licensing(licenses)}"
        f"{'' if carried else usage(kind(plan), name)}"
        f"{scored(scores)}"
        "## Recipe\n\n"
        f"Made with merge-plugins; digest `{digest(recipe)}`. The recipe, also in `merge.yaml`:\n\n"
        f"```yaml\n{content}```\n"
        f"{_came_down_to(settled)}"
    )


def metadata(
    plan: Plan,
    name: str,
    sources: Iterable[str],
    licenses: Iterable[License | None],
    scores: Sequence[Score],
) -> ModelCardData:
    """Compose what the hub reads of a merge: parents, license, how it is loaded, scores.

    The license is the one that asks most; ``unknown``, if a parent states none.
    """
    stated = [*licenses]
    known = [one for one in stated if one is not None]
    strict = strictest(known) if len(known) == len(stated) else License(UNKNOWN)
    library, task, _ = kind(plan)
    return ModelCardData(
        base_model=[*dict.fromkeys(filter(None, map(hub_id, sources)))] or None,
        base_model_relation="merge",
        library_name=library,
        pipeline_tag=task,
        license=strict.id if strict else None,
        license_name=strict.name if strict else None,
        license_link=strict.link if strict else None,
        tags=["merge", "merge-plugins", plan.method.name],
        model_name=name.rpartition("/")[2],
        eval_results=as_results(scores, task or "text-generation") or None,
    )


def _came_down_to(settled: Mapping[str, Any]) -> str:
    if not settled:
        return ""
    text = yaml.safe_dump(json.loads(json.dumps(settled)), sort_keys=False)  # tuples as lists
    message = "On these models it came down to, where a list has one value for each"
    return f"\n{message}:\n\n```yaml\n{text}```\n"
