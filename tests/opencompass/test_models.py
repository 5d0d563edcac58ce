"""The classes that OpenCompass builds: scores of texts, refusals, and what stock would do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from harness_adapters.opencompass import merged_model
from merge_plugins import Recipe, identity
from merge_plugins.errors import MergeError, RecipeError

pytestmark = pytest.mark.usefixtures("opencompass")
TEXTS = [
    "Viết 806 bằng chữ: tám trăm linh sáu",
    "What is 3 + 4?",
    "เขียน 21 เป็นตัวหนังสือ: ยี่สิบเอ็ด",
    "def first_3(data):\n    return data[:3]",
]


def built(recipe, **options):
    """Make a model as a task does: from plain data, by the name of its class."""
    from mmengine.config import ConfigDict
    from opencompass.utils import build_model_from_cfg

    return build_model_from_cfg(ConfigDict(merged_model(recipe, **options)))


@pytest.fixture(scope="module")
def good(workplace):
    return workplace / "good" / "recipe.yaml"


@pytest.fixture(scope="module")
def model(opencompass, good):
    return built(good, dtype="float32")


@pytest.fixture(scope="module")
def logprobs(model):
    """The log-probability of each token after the first of a text, read alone: float64 [n - 1]."""

    def measure(text):
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            found = model.model(ids).logits[0].float().log_softmax(-1)
        return found[:-1].gather(1, ids[0, 1:, None])[:, 0].double()

    return measure


def test_a_text_has_the_perplexity_it_has_alone(model, logprobs):
    alone = [(-logprobs(text)).sum().item() / (len(logprobs(text)) + 1) for text in TEXTS]
    with torch.no_grad():
        together = model.get_ppl(TEXTS)
        one_by_one = [model.get_ppl([text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5)


def test_legacy_padding_gives_the_figures_of_the_stock_class(good, model, workplace, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    from stock_models import Stock

    dtype = {"torch_dtype": "torch.float32"}
    stock = Stock(path=str(workplace / "saved"), model_kwargs=dtype)
    legacy = built(good, dtype="float32", legacy_left_padding=True)
    with torch.no_grad():
        assert (legacy.get_ppl(TEXTS) == stock.get_ppl(TEXTS)).all()
        assert (legacy.get_ppl(TEXTS, [2, 1, 3, 2]) == stock.get_ppl(TEXTS, [2, 1, 3, 2])).all()
        assert np.abs(legacy.get_ppl(TEXTS) - model.get_ppl(TEXTS)).max() > 0.01


def test_a_masked_start_counts_in_no_perplexity(model, logprobs):
    lengths = [2, 1, 5, 3]
    with torch.no_grad():
        found = model.get_ppl(TEXTS, lengths)
    wanted = [
        -logprobs(text)[n - 1 :].mean().item() for text, n in zip(TEXTS, lengths, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("repeated", ["", "data[:3]", "sáu 4? sáu data[:3] 4? "])
def test_a_log_likelihood_is_that_of_the_end_of_the_text(model, logprobs, repeated):
    texts = [repeated + text for text in TEXTS]
    ends = ["sáu", " 4?", "ยี่สิบเอ็ด", "data[:3]"]
    with torch.no_grad():
        found = model.get_loglikelihood(texts, ends)
    for text, end, score in zip(texts, ends, found, strict=True):
        offsets = model.tokenizer(text, return_offsets_mapping=True).offset_mapping
        n_tokens = sum(stop > len(text) - len(end) for _, stop in offsets)
        assert 0 < n_tokens < len(offsets)
        assert score == pytest.approx(logprobs(text)[-n_tokens:].sum().item(), abs=1e-4)


def test_a_text_too_long_loses_its_start_not_its_continuation(good, logprobs):
    short = built(good, dtype="float32", max_seq_len=8)
    with torch.no_grad():
        (found,) = short.get_loglikelihood(["1 2 3 4 5 6 7 8 9 What is 3 + 4?"], ["?"])
    kept = short.tokenizer("1 2 3 4 5 6 7 8 9 What is 3 + 4?").input_ids[-8:]
    with torch.no_grad():
        last = short.model(torch.tensor([kept])).logits[0, -2].float().log_softmax(-1)[kept[-1]]
    assert found == pytest.approx(last.item(), rel=1e-5)


def test_a_continuation_that_is_not_the_end_is_an_error(model):
    with pytest.raises(RecipeError, match="does not end with 'four'"):
        model.get_loglikelihood(["What is 3 + 4?"], ["four"])


def test_scoring_leaves_generation_padded_on_the_left(model):
    before = model.generate(TEXTS, max_out_len=8)
    with torch.no_grad():
        model.get_ppl(TEXTS)
        model.get_loglikelihood(TEXTS, [text[-1] for text in TEXTS])
        model.get_ppl_tokenwise(TEXTS, [[(0, 3, 1)]] * len(TEXTS))
    assert model.tokenizer.padding_side == "left"
    assert model.generate(TEXTS, max_out_len=8) == before


def test_the_dtype_is_the_one_asked_for(good, model):
    assert model.model.dtype == torch.float32
    assert built(good).model.dtype == torch.bfloat16
    assert built(good, model_kwargs={"torch_dtype": "float16"}).model.dtype == torch.float16


def test_context_length_tokenizer_and_stop_words_are_those_of_the_saved_merge(
    good, workplace, monkeypatch
):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    from stock_models import StockChat

    stock = StockChat(path=str(workplace / "saved"))
    ours = built(good, type="harness_adapters.opencompass.MergedWithChatTemplate")
    assert ours.max_seq_len == stock.max_seq_len
    assert sorted(ours.stop_words) == sorted(stock.stop_words)
    assert ours.tokenizer.get_vocab() == stock.tokenizer.get_vocab()
    assert ours.tokenizer.pad_token_id == stock.tokenizer.pad_token_id
    with pytest.raises(NotImplementedError, match="ppl-based"):
        ours.get_ppl(TEXTS)


def test_a_source_that_changed_since_the_config_was_made_is_an_error(workplace, tmp_path):
    shutil.copytree(workplace / "family", tmp_path / "family")
    (tmp_path / "good").mkdir()
    shutil.copy(workplace / "good" / "recipe.yaml", tmp_path / "good")
    entry = merged_model(tmp_path / "good" / "recipe.yaml")
    shutil.copy(tmp_path / "family/code/model.safetensors", tmp_path / "family/sea")
    from harness_adapters.opencompass import MergedCausalLM

    with pytest.raises(RecipeError, match=f"kept as those of recipe {entry['digest']}"):
        MergedCausalLM(entry["recipe"], entry["digest"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_pading": True}, "MergedCausalLM has no argument 'batch_pading'"),
        ({"peft_path": "adapter"}, "peft_path= does not go with a merge"),
        ({"max_seqlen": 7}, "did you mean 'max_seq_len'"),
        ({"digest": None}, "kept as those of recipe None"),
        ({"model_kwargs": {"dtype": "half"}}, "dtype is one of"),
    ],
)
def test_an_argument_that_cannot_be_meant_stops_the_task(good, options, said):
    from harness_adapters.opencompass import MergedCausalLM

    recipe = Recipe.load(good)
    options = {"digest": identity.digest(recipe), **options}
    with pytest.raises(RecipeError) as refusal:
        MergedCausalLM(json.dumps(recipe.as_dict()), **options)
    assert said in str(refusal.value)


@pytest.mark.parametrize("name", ["MergedVLLM", "MergedVLLMwithChatTemplate"])
def test_vllm_classes_say_what_they_lack(good, name):
    with pytest.raises(MergeError, match=f"{name} needs vLLM"):
        built(good, type=f"harness_adapters.opencompass.{name}", max_seq_len=64)


@pytest.mark.parametrize(("name", "is_vllm"), [("MergedVLLM", True), ("MergedCausalLM", False)])
def test_opencompass_leaves_parallelism_to_classes_of_vllm(good, name, is_vllm):
    from mmengine.config import ConfigDict
    from opencompass.tasks import OpenICLInferTask

    entry = merged_model(good, type=f"harness_adapters.opencompass.{name}", run_cfg={"num_gpus": 2})
    dataset = {"abbr": "numbers", "infer_cfg": {}, "reader_cfg": {}}
    task = OpenICLInferTask(ConfigDict(models=[entry], datasets=[[dataset]], work_dir="out"))
    assert ("torch.distributed.run" in task.get_command("params.py", "{task_cmd}")) != is_vllm
