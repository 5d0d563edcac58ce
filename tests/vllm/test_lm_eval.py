"""``lm_eval --model merged-vllm`` scores a merge as ``--model vllm`` scores the saved one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from merge_plugins import Recipe, digest
from merge_plugins.errors import RecipeError

Run = Callable[..., Any]
TASKS = {
    "tiny_choice": "output_type: multiple_choice\n"
    'doc_to_text: "{{a}} + {{b}} ="\n'
    "doc_to_choice: ['3', '4', 'five']\n"
    "doc_to_target: 0\n"
    "metric_list: [{metric: acc}]\n",
    "tiny_generate": "output_type: generate_until\n"
    'doc_to_text: "{{a}} + {{b}} ="\n'
    'doc_to_target: "{{a}}"\n'
    "generation_kwargs: {until: ['one'], do_sample: false, max_gen_toks: 6}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    "tiny_rolling": "output_type: loglikelihood_rolling\n"
    'doc_to_text: ""\n'
    'doc_to_target: "one two {{a}} three {{b}}"\n'
    "metric_list: [{metric: word_perplexity}]\n",
}


@pytest.fixture(scope="module")
def tasks(workplace: Path) -> list[str]:
    """Names of three tasks that are in the folder ``tasks`` of the workplace."""
    folder = workplace / "tasks"
    folder.mkdir()
    rows = [{"a": a, "b": b} for a in range(3) for b in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = {"data_files": {"test": str(folder / "rows.jsonl")}}
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {json.dumps(data)}\n{text}"
        )
    return [*TASKS]


@pytest.fixture
def score(run: Run, tasks: list[str], options: Mapping[str, Any]) -> Run:
    """Score saved checkpoints, recipes in one engine, and model_args; return what each recorded."""

    def score(
        saved: Sequence[str] = (),
        recipes: Sequence[str] = (),
        inline: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> list[dict[str, Any]]:
        given = [{**options, **more}, tasks, "tasks", saved, recipes, inline]
        found: list[dict[str, Any]] = run("scoring", given)
        return found

    return score


def test_one_engine_scores_many_recipes_as_lm_eval_scores_the_saved_merges(
    score: Run, workplace: Path
) -> None:
    """Each under its own name, and answered from the cache when it comes again."""
    folder = workplace / "dense"
    stock = score(saved=["dense/good-saved", "dense/wrecked-saved"])
    good, wrecked = (one["samples"] for one in stock)
    assert good != wrecked
    recipes = [f"dense/{name}.yaml" for name in ("good", "wrecked", "good")]
    inline = {"method": "ties", "base": "dense/base", "models": "dense/math+dense/code"}
    inline |= {"weights": 1, "density": 0.6, "lambda": 0.7}
    *ours, alone = score(recipes=recipes, inline=inline)
    assert [one["samples"] for one in (*ours, alone)] == [good, wrecked, good, good]
    assert len({one["engine"] for one in ours}) == 1
    made = [Recipe.load(folder / f"{name}.yaml") for name in ("good", "wrecked", "good")]
    assert [one["digest"] for one in ours] == [*map(digest, made)]
    assert [one["n_asked"] > 0 for one in ours] == [True, True, False]
    assert alone["model"] == f"ties-{alone['digest']}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load_format": "auto"}, "load_format= does not go with a merge"),
        ({"gpu_memory_utilisation": 0.5}, "did you mean 'gpu_memory_utilization'"),
        ({"densty": 0.5}, "did you mean 'density'"),
        ({"method": "emr", "router": "fixed"}, "no vLLM engine can hold"),
    ],
)
def test_what_an_engine_cannot_take_is_refused_before_it_starts(
    given: dict[str, Any],
    message: str,
    named: None,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(workplace)
    from harness_adapters.lm_eval.vllm import MergedVLLM

    models = {"base": "dense/base", "models": "dense/math+dense/code"}
    with pytest.raises(RecipeError, match=message):
        MergedVLLM(**{"method": "ties", **models, **given})
