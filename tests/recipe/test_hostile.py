"""Recipes that are no accident: each is refused in a moment, with words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merge_plugins import Recipe
from merge_plugins.engine import open_merge
from merge_plugins.errors import DataError, MergeWarning, RecipeError
from merge_plugins.recipe import read_recipe
from merge_plugins.recipe.parsing import DEEPEST, LONGEST, MOST
from merge_plugins.recipe.references import MERGES

LINEAR = "merge_method: linear\n"
HEAD = f"{LINEAR}parameters: {{weight: 1}}\nmodels: "


def laughs(levels: int) -> str:
    """Nine times nine times … : every level is a list of the one before."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merging(levels: int) -> str:
    """The same with `<<`, which writes the keys of a mapping into another."""
    lines = ["- &a0 {a: 1, b: 2, c: 3}"]
    lines += [f"- &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


FILES = {
    "a billion values of 400 bytes": (laughs(10), "at most 50,000 values"),
    "a billion keys of as few": (merging(10), "at most 50,000 values"),
    "a list that holds itself": (f"{HEAD}&m [a, *m]", f"at most {DEEPEST} levels"),
    "a long list": ("- &a x\n" + "- *a\n" * MOST, "at most 50,000 values"),
    "a long text": ("# " + "x" * LONGEST, "at most 1,048,576 characters"),
    "many brackets": ("[\n" * 5000, f"at most {DEEPEST} levels"),
    "a deep list": (f"a: {'[' * 60}{']' * 60}", f"at most {DEEPEST} levels"),
    "infinity": (f"{HEAD}[a]\nseed: .inf", "seed is a whole number"),
    "an integer of 4,000 hex digits": (f"{HEAD}[a]\nseed: 0x{'f' * 4000}", "at most 64 bits"),
    "an integer without digits": (f"{HEAD}[a]\nseed: 0b_", "not YAML"),
    "a date that is none": (f"{HEAD}[a]\nseed: 2001-99-99", "got '2001-99-99'"),
    "a date": (f"{HEAD}[a]\nseed: 2001-01-01", "got '2001-01-01'"),
    "a tag without its value": ("a: !!int x", "not YAML"),
    "a truth that is none": ("a: !!bool x", "not YAML"),
    "a timestamp": ("a: !!timestamp x", "line 1: .* no timestamp"),
    "a set": ("merge_method: !!set {a}", "line 1: .* no set"),
    "a map of text": ("merge_method: !!map linear", "not YAML"),
    "a key of lists": ("? [a, b]\n: c", "not YAML"),
    "half a character": (f'{HEAD}["\\ud800"]', "UTF-8 without null"),
    "a character that is none": (f'{HEAD}["\\UFFFFFFFF"]', "not YAML"),
    "a null byte": (f'{HEAD}["a\\0b"]', "UTF-8 without null"),
    "a null byte in the file": ("a: \0", "not YAML"),
    "a name of 5,000 letters": (f"{HEAD}[{'x' * 5000}]", "too long"),
    "a path of 5,000 letters": (f"{HEAD}[{'x/' * 2500}y]", "too long"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, f"at most {DEEPEST} levels"),
        (json.dumps({"merge_method": "linear", "seed": [0] * MOST}), "at most 50,000 values"),
        (f'{{"seed": {"9" * 5000}}}', "not JSON"),
        (f'{{"seed": {"9" * 400}}}', "at most 64 bits"),
        ('{"a": "\\ud800"}', "UTF-8 without null"),
        ("[]", "a recipe is a mapping"),
    ],
)
def test_a_json_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / "recipe.json")


def test_a_file_as_large_as_recipes_get_is_read(tmp_path: Path) -> None:
    """A value for each of 723 weights of a 70B model, for ten models; written out or by anchor."""
    rules = ", ".join(f"{{filter: layers.{i}.w, value: 0.5}}" for i in range(723))
    models = "".join(f"\n- {{model: m{i}, parameters: {{weight: *w}}}}" for i in range(10))
    text = f"{LINEAR}parameters: {{weight: 1}}\nmodels: {models}".replace("*w", f"&w [{rules}]", 1)
    (tmp_path / "recipe.yaml").write_text(text)
    assert len(Recipe.load(tmp_path / "recipe.yaml").models) == 10


MAPPINGS: dict[str, tuple[dict[str, Any], str]] = {
    "an integer beyond any float": ({"parameters": {"weight": 10**400}}, "64 bits"),
    "an integer beyond 64 bits": ({"seed": 2**64}, "64 bits"),
    "text beyond any float": ({"parameters": {"weight": "1e400", "normalize": "x"}}, "normalize"),
    "no mapping": ({"models": [{"model": "a", "parameters": [1]}]}, "parameters of .* a mapping"),
    "a weight of its own kind": ({"parameters": {"weight": object()}}, "weight is a number"),
}


@pytest.mark.parametrize(("changes", "message"), MAPPINGS.values(), ids=MAPPINGS)
def test_a_mapping_is_refused(changes: dict[str, Any], message: str) -> None:
    whole = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1}}
    with pytest.raises(RecipeError, match=message):
        Recipe.from_mapping({**whole, **changes})


def test_a_mapping_that_is_none_is_refused() -> None:
    for given in ([], "merge.yaml", None):
        with pytest.raises(RecipeError, match="a recipe is a mapping"):
            Recipe.from_mapping(given)  # type: ignore[arg-type]


def test_names_that_no_file_can_have_are_refused_in_the_short_form_too() -> None:
    for given in ({"config": "x" * 300}, {"method": "linear", "models": f"{'x' * 300}:1"}):
        with pytest.raises(RecipeError, match="too long"):
            Recipe.from_model_args(given)
    stranger = Recipe.from_model_args({"method": "linear", "models": "~nobody.here/x:1"})
    assert stranger.models[0].ref == str(Path.cwd() / "~nobody.here" / "x")


def test_a_short_form_of_any_length_is_no_path() -> None:
    rules = "+".join(["0.5"] * 200)
    recipe = read_recipe(
        f"method=linear,models={'+'.join(f'm{i}' for i in range(200))},weights={rules}"
    )
    assert len(recipe.models) == 200


def test_merges_that_multiply_are_refused(tmp_path: Path) -> None:
    """Thirteen documents, each naming the one before three times: a million merges."""
    names = ["a", *(f"merge{i}" for i in range(13))]
    documents = [
        f"name: {name}\n{LINEAR}models: [{{model: {before}, parameters: {{weight: 1}}}}]\n"
        f"generation_config: {before}\ndonor: {before}\n"
        for before, name in itertools.pairwise(names)
    ]
    (tmp_path / "recipe.yaml").write_text("---\n".join(documents))
    with pytest.raises(RecipeError, match=f"at most {MERGES} merges"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_many_documents_are_matched_with_those_that_use_them_once(tmp_path: Path) -> None:
    documents = [f"name: m{i}\n{LINEAR}" for i in range(2000)]
    (tmp_path / "recipe.yaml").write_text("---\n".join([*documents, HEAD + "[a]"]))
    with pytest.warns(MergeWarning) as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert len(caught) == 2000


def test_excluding_everything_is_refused(checkpoint: Callable[..., str]) -> None:
    import torch

    models = [checkpoint({"layers.0.w": torch.ones(2, 2)}) for _ in "ab"]
    whole = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    with pytest.raises(RecipeError, match="no weight is left to merge"):
        open_merge(Recipe.from_mapping({**whole, "exclude": ["."]}))


def test_data_that_never_ends_is_refused() -> None:
    whole = {"merge_method": "fisher_merging", "models": ["a", "b"], "data": "/dev/zero"}
    with pytest.raises(DataError, match="/dev/zero is no file"):
        open_merge(Recipe.from_mapping(whole))


def test_a_row_of_brackets_is_no_example(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("[" * 100_000)
    whole = {"merge_method": "fisher_merging", "models": ["a", "b"], "data": "texts.jsonl"}
    with pytest.raises(DataError, match="line 1: not JSON"):
        open_merge(Recipe.from_mapping(whole, tmp_path))
