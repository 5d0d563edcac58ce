"""Weights that are not merged: heads that each model has for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from merge_plugins import Recipe, identity, load_merged, merged_tensors
from merge_plugins.cli import main
from merge_plugins.engine import open_merge
from merge_plugins.errors import RecipeError

Write = Callable[..., str]
BODY = {"encoder.weight": torch.eye(3), "encoder.bias": torch.zeros(3)}


@pytest.fixture(scope="module")
def folders(checkpoint: Write) -> dict[str, str]:
    heads = {"base": ("lm_head", 7), "cola": ("classifier", 2), "rte": ("classifier", 5)}
    return {
        name: checkpoint(
            {key: value + i for key, value in BODY.items()}
            | {f"{head}.weight": torch.full((n, 3), float(i))}
        )
        for i, (name, (head, n)) in enumerate(heads.items())
    }


def spelled(folders: dict[str, str], **given: object) -> Recipe:
    models = f"{folders['cola']}+{folders['rte']}"
    return Recipe.from_model_args(
        {"method": "task_arithmetic", "base": folders["base"], "models": models, **given}
    )


def test_excluded_weights_come_from_the_donor(folders: dict[str, str]) -> None:
    recipe = spelled(folders, exclude="classifier+lm_head", donor=folders["rte"])
    tensors = merged_tensors(recipe)
    assert set(tensors) == {*BODY, "classifier.weight"}
    assert torch.equal(tensors["encoder.weight"][...], torch.eye(3) + 3)
    assert torch.equal(tensors["classifier.weight"][...], torch.full((5, 3), 2.0))
    entry = open_merge(recipe).plan.as_dict()["tensors"]["classifier.weight"]
    assert [put["model"] for put in entry["inputs"]] == [folders["rte"]]


def test_an_excluded_bias_keeps_the_bases_value(folders: dict[str, str]) -> None:
    recipe = spelled(folders, exclude="classifier+bias+lm_head")
    tensors = merged_tensors(recipe)
    assert torch.equal(tensors["encoder.bias"][...], torch.zeros(3))
    assert torch.equal(tensors["lm_head.weight"][...], torch.zeros(7, 3))


def test_excluded_weights_have_the_dtype_of_the_merge(folders: dict[str, str]) -> None:
    recipe = spelled(folders, exclude="classifier+lm_head", out_dtype="bfloat16")
    assert merged_tensors(recipe)["lm_head.weight"][...].dtype == torch.bfloat16


def test_every_spelling_is_one_recipe(folders: dict[str, str]) -> None:
    short = spelled(folders, exclude="lm_head+classifier", donor=folders["cola"])
    file = {
        "merge_method": "task_arithmetic",
        "base_model": folders["base"],
        "models": [folders["cola"], folders["rte"]],
        "exclude": ["classifier", "lm_head"],
        "donor": folders["cola"],
    }
    assert Recipe.from_mapping(file) == short
    assert Recipe.from_mapping(short.as_dict()) == short
    assert identity.digest(
        Recipe.from_mapping({**file, "donor": folders["rte"]})
    ) != identity.digest(short)
    without = {key: value for key, value in file.items() if key != "donor"}
    assert Recipe.from_mapping({**file, "donor": folders["base"]}) == Recipe.from_mapping(without)


def test_a_head_that_only_some_models_have_says_how_to_leave_it_out(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    models = f"{folders['cola']}+{folders['rte']}"
    status = main(["check", f"method=task_arithmetic,base={folders['base']},models={models}"])
    assert status == 1
    assert "exclude:" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["clasifier"], [""], 3])
def test_an_exclusion_that_excludes_nothing_is_an_error(
    folders: dict[str, str], given: object
) -> None:
    with pytest.raises(RecipeError, match="exclude"):
        open_merge(
            Recipe.from_mapping(
                {
                    "merge_method": "average_merging",
                    "models": [folders["cola"], folders["rte"]],
                    "exclude": given,
                }
            )
        )


def test_classifiers_of_different_sizes_merge_around_their_heads(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

    def config(n_labels: int) -> RobertaConfig:
        return RobertaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=20,
            num_labels=n_labels,
        )

    torch.manual_seed(0)
    RobertaForMaskedLM(config(2)).save_pretrained(tmp_path / "base")
    experts = {"cola": 2, "mnli": 3}
    for name, n_labels in experts.items():
        RobertaForSequenceClassification(config(n_labels)).save_pretrained(tmp_path / name)
    recipe = Recipe.from_mapping(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": list(experts),
            "parameters": {"scaling_coefficient": 0.3},
            "exclude": ["classifier", "lm_head"],
            "donor": "mnli",
        },
        tmp_path,
    )
    model = load_merged(recipe, AutoModelForSequenceClassification)
    own = RobertaForSequenceClassification.from_pretrained(tmp_path / "mnli")
    assert torch.equal(model.classifier.out_proj.weight, own.classifier.out_proj.weight)
    assert not torch.equal(model.roberta.embeddings.word_embeddings.weight,
                           own.roberta.embeddings.word_embeddings.weight)  # fmt: skip
