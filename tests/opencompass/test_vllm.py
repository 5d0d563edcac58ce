"""OpenCompass's vLLM classes on a merge: the predictions of the stock class on the saved one.

No release of OpenCompass and vLLM share an environment by their own pins, so this runs where
somebody brought them together (docs/harnesses.md says how), with Ray, which the stock class wants.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merge_plugins import Recipe, identity

pytestmark = pytest.mark.usefixtures("opencompass")
RUN = """
from harness_adapters.opencompass import MergedVLLM, MergedVLLMwithChatTemplate
from opencompass.models import VLLM, VLLMwithChatTemplate

one = dict(batch_size=4, max_seq_len=128, run_cfg=dict(num_gpus=0), max_out_len=24)
kwargs = dict(enforce_eager=True, max_model_len=256, max_num_seqs=4, dtype="bfloat16")
models = [
    dict(one, abbr="stock", type=VLLM, path="saved", model_kwargs=kwargs),
    dict(one, abbr="ours", type=MergedVLLM, recipe="good/recipe.yaml", model_kwargs=kwargs),
    dict(one, abbr="stock-chat", type=VLLMwithChatTemplate, path="saved", model_kwargs=kwargs),
    dict(
        one,
        abbr="ours-chat",
        type=MergedVLLMwithChatTemplate,
        recipe="chat.yaml",
        model_kwargs=kwargs,
    ),
]
datasets = [stories, numbers]
model_dataset_combinations = [
    dict(models=models[:2], datasets=datasets),
    dict(models=models[2:], datasets=[stories]),
]
"""
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_predictions_are_byte_for_byte_those_of_the_stock_class(
    launch, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm.config", exc_type=ModuleNotFoundError)
    pytest.importorskip("ray", exc_type=ModuleNotFoundError)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    recipe = Recipe.load(workplace / "good" / "recipe.yaml")
    (workplace / "chat.yaml").write_text(json.dumps({**recipe.as_dict(), "chat_template": CHAT}))
    (workplace / "saved" / "chat_template.jinja").write_text(CHAT)
    status, said = launch(RUN, "-m", "infer")
    assert status == 0, said
    run = max((workplace / "out").iterdir())

    def answers(model: str, dataset: str) -> bytes:
        return (run / "predictions" / model / f"{dataset}.json").read_bytes()

    ours, chat = (
        f"ours-{identity.digest(recipe)}",
        f"ours-chat-{identity.digest(Recipe.load(workplace / 'chat.yaml'))}",
    )
    assert answers(ours, "stories") == answers("stock", "stories")
    assert answers(ours, "numbers") == answers("stock", "numbers")
    assert answers(chat, "stories") == answers("stock-chat", "stories")
