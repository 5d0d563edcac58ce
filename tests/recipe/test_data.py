"""What ``data:`` may say, and what it means for a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from merge_plugins import Recipe, identity
from merge_plugins.api import Example
from merge_plugins.calibration.batches import UNSCORED, batches
from merge_plugins.engine import open_merge
from merge_plugins.errors import DataError, RecipeError
from merge_plugins.recipe import Data
from merge_plugins.recipe.data import from_setting

Rows = Callable[..., str]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Write a JSONL file of objects, or of lines as they are."""

    def write(*given: Any, name: str = "data.jsonl") -> str:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in given]
        file = tmp_path / name
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(file)

    return write


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"text": "a b"}, Example("a b")),
        ({"text": "a b", "label": 2}, Example("a b", label=2)),
        ({"prompt": "q", "response": "r"}, Example("q", "r")),
        ({"instruction": "q", "input": "more", "output": "r"}, Example("q\nmore", "r")),
        ({"instruction": "q", "input": "", "completion": "r"}, Example("q", "r")),
        ({"input": "q", "output": "r"}, Example("q", "r")),
        ({"question": "q", "answer": " r"}, Example("q", " r")),
        ({"prompt": "q", "response": "r", "label": 0.5}, Example("q", "r", 0.5)),
        (
            {"query": "q", "pos": ["p"], "neg": ["n", "m"]},
            Example("q", positives=("p",), negatives=("n", "m")),
        ),
    ],
)
def test_a_row_is_an_example(rows: Rows, row: Mapping[str, Any], example: Example) -> None:
    assert Data(rows(row, "", row)).examples() == (example, example)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{'text': 1}", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ({"txt": "a"}, "line 2: no key 'txt'; did you mean 'text'?"),
        ({"text": 3}, "line 2: text is a text; got 3"),
        ({"text": ""}, "line 2: text is a text; got ''"),
        ({"label": 1}, r"line 2: needs text, prompt and response, or query; has \['label'\]"),
        ({"text": "a", "prompt": "b"}, "line 2: text and prompt exclude each other"),
        ({"text": "a", "output": "b"}, "line 2: text and output exclude each other"),
        ({"prompt": "a", "answer": "b", "output": "c"}, "output and answer exclude each other"),
        ({"prompt": "a", "answer": 4}, "line 2: answer is a text; got 4"),
        ({"prompt": "", "answer": "4"}, "line 2: prompt is empty"),
        ({"text": "a", "label": "x"}, "line 2: label is a number; got 'x'"),
        ({"query": "a", "pos": "p"}, "line 2: pos is a list of texts; got 'p'"),
    ],
)
def test_a_row_that_is_no_example_is_named_by_file_and_line(
    rows: Rows, row: Any, said: str
) -> None:
    file = rows({"text": "fine"}, row)
    with pytest.raises(DataError, match=said) as failure:
        Data(file).examples()
    assert file in str(failure.value)


def test_a_file_that_is_missing_empty_or_no_text_is_named(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no calibration data .*nowhere.jsonl: No such file"):
        Data(str(tmp_path / "nowhere.jsonl")).examples()
    with pytest.raises(DataError, match=r"data.jsonl holds no examples"):
        Data(rows("")).examples()
    (tmp_path / "image.jsonl").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"image.jsonl is not UTF-8 text"):
        Data(str(tmp_path / "image.jsonl")).examples()


def test_of_a_large_file_a_share_is_drawn_by_seed_in_its_order(rows: Rows) -> None:
    file = rows(*({"text": str(i)} for i in range(100)))
    drawn = [
        [int(e.prompt) for e in Data(file, limit=20, seed=seed).examples()] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(some == sorted(set(some)) and len(some) == 20 for some in drawn)
    assert len(Data(file).examples()) == 100


def test_the_digest_is_of_what_is_read_not_of_where_it_is(rows: Rows) -> None:
    texts = [{"text": str(i)} for i in range(5)]
    one, other = Data(rows(*texts)), Data(rows(*texts, "", name="moved.jsonl"))
    assert one.digest == other.digest
    different = [
        Data(rows(*texts[::-1], name="b.jsonl")),
        Data(str(one.path), limit=4),
        Data(str(one.path), max_length=100),
        Data(str(one.path), batch_size=2),
    ]
    assert len({data.digest for data in (one, *different)}) == 5


def test_a_file_that_changed_is_read_again(rows: Rows) -> None:
    data = Data(rows({"text": "before"}))
    first = data.digest
    rows({"text": "before and after"})
    assert data.examples() == (Example("before and after"),)
    assert data.digest != first


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "data is a JSONL file, task:<name>, or a mapping"),
        ({"limit": 3}, "data takes one of path"),
        ({"path": "a", "task": "b"}, "data takes one of path"),
        ({"path": "a", "limt": 3}, "data: no key 'limt'; did you mean 'limit'?"),
        ({"path": "a", "limit": 0}, "data: limit is a whole number, 1 or more; got 0"),
        ({"path": "a", "batch_size": 2.5}, "batch_size is a whole number, 1 or more; got 2.5"),
        ({"path": "a", "limit": 3, "nums_fisher_examples": 3}, "data: limit is given twice"),
        ({"path": 7}, "data: path is a name, in quotes; got 7"),
        ({"path": "a", "include_path": "b"}, "include_path is where a task: is looked for"),
    ],
)
def test_data_that_means_nothing_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        from_setting(given, Path())


# In a recipe.


@pytest.fixture
def models(checkpoint: Any) -> list[str]:
    import torch

    return [checkpoint({"w": torch.ones(2, 2)}) for _ in range(3)]


def spelled(models: list[str], method: str = "fisher_merging", **keys: Any) -> Recipe:
    return Recipe.from_mapping({"merge_method": method, "models": models, **keys})


def test_every_spelling_of_the_same_data_is_one_recipe(models: list[str], rows: Rows) -> None:
    file = rows({"text": "a"})
    own = [{"model": model, "data": file} for model in models]
    short = {"method": "fisher_merging", "models": "+".join(models)}
    recipes = [
        spelled(models, data=file),
        spelled(models, data={"path": file, "nums_fisher_examples": 256}),
        spelled(own),
        spelled(own, data=rows({"text": "nobody reads me"}, name="other.jsonl")),
        Recipe.from_model_args({**short, "data": file}),
        Recipe.from_model_args({**short, "data": f"{file}+{file}+{file}"}),
        Recipe.from_model_args({**short, "data": json.dumps({"path": file})}),
    ]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert {identity.digest(recipe) for recipe in recipes} == {identity.digest(recipes[0])}
    assert recipes[0].as_dict()["data"] == file
    assert Recipe.from_mapping(recipes[0].as_dict()) == recipes[0]


def test_each_model_may_have_data_of_its_own(models: list[str], rows: Rows) -> None:
    files = [rows({"text": str(i)}, name=f"{i}.jsonl") for i in range(3)]
    own = [{"model": m, "data": f} for m, f in zip(models, files, strict=True)]
    own[2]["data"] = {"path": files[2], "limit": 5, "batch_size": 1}
    recipe = spelled(own)
    assert [recipe.data_of(model) for model in recipe.models] == [
        Data(files[0]),
        Data(files[1]),
        Data(files[2], limit=5, batch_size=1),
    ]
    assert Recipe.from_mapping(recipe.as_dict()) == recipe
    short = {"method": "fisher_merging", "models": "+".join(models), "data": "+".join(files)}
    assert Recipe.from_model_args(short).models[1].data == Data(files[1])
    assert identity.digest(recipe) != identity.digest(spelled(models, data=files[0]))
    with pytest.raises(RecipeError, match="data has 2 values for 3 models"):
        Recipe.from_model_args({**short, "data": "+".join(files[:2])})


def test_model_args_win_over_the_data_of_the_file(
    models: list[str], rows: Rows, tmp_path: Path
) -> None:
    old, new = rows({"text": "a"}), rows({"text": "b"}, name="new.jsonl")
    held = spelled([{"model": model, "data": old} for model in models])
    (tmp_path / "merge.yaml").write_text(held.to_yaml())
    args = {"config": str(tmp_path / "merge.yaml"), "data": new}
    assert Recipe.from_model_args(args) == spelled(models, data=new)


def test_a_path_is_relative_to_the_recipe(models: list[str], rows: Rows, tmp_path: Path) -> None:
    rows({"text": "a"})
    (tmp_path / "merge.yaml").write_text(spelled(models, data="data.jsonl").to_yaml())
    mapping = {"merge_method": "fisher_merging", "models": models, "data": "data.jsonl"}
    (tmp_path / "merge.json").write_text(json.dumps(mapping))
    assert Recipe.load(tmp_path / "merge.json").data == Data(str(tmp_path / "data.jsonl"))


def test_the_contents_of_the_data_decide_the_digest(models: list[str], rows: Rows) -> None:
    file = rows({"text": "a"})
    before = identity.digest(spelled(models, data=file))
    rows({"text": "changed"})
    assert identity.digest(spelled(models, data=file)) != before


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_a_method_that_needs_data_says_so_before_any_file_is_opened(method: str) -> None:
    nowhere = [{"model": "/nowhere/a", "data": "/nowhere.jsonl"}, "/nowhere/b"]
    with pytest.raises(RecipeError, match=f"{method}: needs calibration data for /nowhere/b; add"):
        open_merge(spelled(nowhere, method))


def test_data_that_nobody_reads_is_refused(models: list[str], rows: Rows) -> None:
    for given in ({"data": rows({"text": "a"})}, {}):
        entries = models if given else [{"model": models[0], "data": rows({"text": "a"})}]
        with pytest.raises(RecipeError, match="average_merging: reads no calibration data here"):
            open_merge(spelled(entries, "average_merging", **given))


def test_a_damaged_row_stops_the_check_of_a_recipe(models: list[str], rows: Rows) -> None:
    with pytest.raises(DataError, match="line 1: not JSON"):
        open_merge(spelled(models, data=rows("{")))


# As tokens.


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Words of one letter; text begins with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *"abcdefgh"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def as_lists(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tensor.tolist() for key, tensor in batch.items()}


def test_only_the_response_is_scored_and_nothing_of_the_padding(tokenizer: Any) -> None:
    examples = [Example("a b", "c"), Example("d e f"), Example("a", " b c d")]
    first, second = batches(tokenizer, examples, Data("x", batch_size=2), classifier=False)
    no = UNSCORED
    assert as_lists(first) == {
        "input_ids": [[1, 3, 4, 5, 2], [1, 6, 7, 8, 0]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
        "labels": [[no, no, no, 5, 2], [1, 6, 7, 8, no]],
    }
    assert as_lists(second)["labels"] == [[no, no, 4, 5, 6, 2]]


def test_a_long_text_loses_its_end_and_a_long_prompt_its_beginning(tokenizer: Any) -> None:
    examples = [Example("a b c d e"), Example("a b c d", "e f")]
    (batch,) = batches(tokenizer, examples, Data("x", max_length=4), classifier=False)
    assert as_lists(batch)["input_ids"] == [[1, 3, 4, 5], [6, 7, 8, 2]]
    assert as_lists(batch)["labels"][1] == [UNSCORED, 7, 8, 2]


def test_a_classifier_reads_pairs_and_labels(tokenizer: Any) -> None:
    examples = [Example("a", "b", 1), Example("c d", label=0)]
    (batch,) = batches(tokenizer, examples, Data("x"), classifier=True)
    assert as_lists(batch) == {
        "input_ids": [[1, 3, 2, 4], [1, 5, 6, 0]],
        "token_type_ids": [[0, 0, 0, 1], [0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
        "labels": [1, 0],
    }
    unlabelled = [*examples, Example("e")]
    (batch,) = batches(tokenizer, unlabelled, Data("x"), classifier=True)
    assert "labels" not in batch
