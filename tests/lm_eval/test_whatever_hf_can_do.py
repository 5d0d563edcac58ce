"""Each option of ``--model hf`` means the same to ``--model merged``, answer by answer."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from lm_eval_options import RUN
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from harness_adapters.lm_eval import MergedLM


@pytest.mark.parametrize(("model_args", "options"), RUN.values(), ids=RUN.keys())
def test_the_same_answers_with(model_args, options, evaluate, family, saved):
    stock = evaluate("hf", {"pretrained": saved, **model_args}, **options)
    merged = evaluate("merged", family.recipe(**model_args), **options)
    assert merged.answers == stock.answers
    assert merged.scores == stock.scores
    for fact in ("model_num_parameters", "model_dtype"):
        assert merged.results["config"][fact] == stock.results["config"][fact]


def test_the_generation_config_comes_along(evaluate, family, saved):
    # Without its repetition penalty the answers of this family differ, so that the table above
    # would notice if it were lost.
    plain = evaluate("hf", {"pretrained": saved}, gen_kwargs="repetition_penalty=1.0")
    assert plain.answers != evaluate("merged", family.recipe()).answers


def test_the_base_alone_does_not_give_the_same_answers(evaluate, family):
    base = evaluate("hf", {"pretrained": family.base})
    assert base.answers != evaluate("merged", family.recipe()).answers


@pytest.fixture(scope="module")
def adapter(family, saved):
    """A LoRA adapter with weights that matter."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(saved),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(family.root / "adapter")
    return str(family.root / "adapter")


def test_an_adapter_goes_on_top_of_the_merge(evaluate, family, saved, adapter):
    stock = evaluate("hf", {"pretrained": saved, "peft": adapter})
    merged = evaluate("merged", family.recipe(peft=adapter))
    assert merged.answers == stock.answers
    assert merged.answers != evaluate("merged", family.recipe()).answers


def test_steering_vectors_act_on_the_merge(evaluate, family, saved):
    file = family.root / "steer.pt"
    vector = torch.linspace(-1, 1, 64)
    steering = {"steering_vector": vector, "steering_coefficient": 4.0, "action": "add"}
    torch.save({"layers.1": steering}, file)
    stock = evaluate("steered", {"pretrained": saved, "steer_path": str(file)})
    merged = evaluate("merged-steered", family.recipe(steer_path=str(file)))
    assert merged.answers == stock.answers
    assert merged.answers != evaluate("merged", family.recipe()).answers


BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize(
    ("model_args", "quantised"),
    [
        ({"load_in_8bit": True}, {"load_in_8bit": True}),
        ({"quantization_config": BITSANDBYTES}, {"load_in_8bit": True}),
        (
            {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
            {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16},
        ),
    ],
)
def test_quantising_the_merge_equals_quantising_the_saved_one(model_args, quantised, family, saved):
    # lm-eval's own `hf` cannot say it: transformers 5 refuses load_in_*bit.
    merged = MergedLM(**family.recipe(**model_args), device="cpu").model
    config = BitsAndBytesConfig(**quantised)
    stock = AutoModelForCausalLM.from_pretrained(saved, quantization_config=config)
    ids = torch.arange(10)[None]
    assert merged.is_quantized
    assert torch.equal(merged(ids).logits, stock(ids).logits)
