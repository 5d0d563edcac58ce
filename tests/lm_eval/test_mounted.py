"""A recipe folder in lm-eval's own `hf`: the saved merge's answers, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_plugins import Recipe, mount


@pytest.fixture
def mounted(family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "code"))
    return str(mount(Recipe.from_model_args(family.recipe()), tmp_path / "mounted"))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"parallelize": True}], ids=str)
def test_hf_answers_as_on_the_saved_merge(options, mounted, saved, evaluate):
    found = evaluate("hf", {"pretrained": mounted, "trust_remote_code": True, **options})
    expected = evaluate("hf", {"pretrained": saved, **options})
    assert found.answers == expected.answers
    assert found.scores == expected.scores


def test_hf_stops_where_the_folders_code_is_not_trusted(mounted, evaluate):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        evaluate("hf", {"pretrained": mounted})
