"""What `--model merged` does not take, it refuses before reading weights, saying what to type."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness_adapters.lm_eval import MergedLM
from merge_plugins import MergeError

REFUSALS = {
    "densty=0.5": "no argument 'densty'",
    "wieghts=0.5": "no argument 'wieghts'; did you mean 'weights'?",
    "dtpye=float16": "no argument 'dtpye'; did you mean 'dtype'?",
    "parallelise=True": "no argument 'parallelise'; did you mean 'parallelize'?",
    "load_in_8bits=True": "no argument 'load_in_8bits'; did you mean 'load_in_8bit'?",
    "delta=somewhere": "delta= does not go with a merge: write it in the recipe, as a model {model",
    "autogptq=True": "autogptq= does not go with a merge: merge the full-precision models",
    "gptqmodel=True": "gptqmodel= does not go with a merge: merge the full-precision models",
    "gguf_file=a.gguf": "gguf_file= does not go with a merge: name the safetensors version",
    "subfolder=step1": "subfolder= does not go with a merge: name the folder itself",
    "cache_dir=/elsewhere": "cache_dir= does not go with a merge: set the environment",
    "pretrained=gpt2": "pretrained= does not go with a merge: no checkpoint is loaded.",
    "revision=main": "revision= does not go with a merge: write it behind the model that it is of",
    "model=gpt2": "model= does not go with a merge: name the models that are merged with models=",
    "to_dict=1": "no argument 'to_dict'",
    "method=liner": "no merge method 'liner'; did you mean 'linear'?",
    "models=/nowhere/math:1": "no model '/nowhere/math'",
}


@pytest.mark.parametrize(("argument", "message"), REFUSALS.items(), ids=REFUSALS.keys())
def test_refused_with_the_way_out(argument, message, family):
    name, _, value = argument.partition("=")
    with pytest.raises(MergeError) as refusal:
        MergedLM(**family.recipe(**{name: value}), device="cpu")
    assert message in str(refusal.value)


def test_an_argument_that_is_switched_off_is_no_argument(family):
    MergedLM(**family.recipe(autogptq=False, delta=None, gguf_file=None), device="cpu")


def test_two_ways_to_quantise_are_one_too_many(family):
    both = {"load_in_8bit": True, "quantization_config": {"quant_method": "bitsandbytes"}}
    with pytest.raises(MergeError, match="load_in_8bit= and quantization_config= both given"):
        MergedLM(**family.recipe(**both), device="cpu")


def test_a_bare_comma_between_models_is_explained(evaluate, family):
    arguments = f"method=linear,models={family.math}:0.5,{family.code}:0.5"
    with pytest.raises(MergeError, match="Join the values of one with '\\+': models=…\\+"):
        evaluate("merged", arguments)


TIES = ("method=TIES", "lm_eval", "--model", "merged", "--device", "cpu", "--tasks", "tiny_choice")
NOT_THERE = "no merge method 'TIES'; did you mean 'ties'? Run 'merge-plugins list' to see them."


def shown(error: pytest.ExceptionInfo[MergeError], capsys: pytest.CaptureFixture[str]) -> str:
    """What Python writes when nobody catches an error."""
    capsys.readouterr()
    sys.excepthook(error.type, error.value, error.tb)
    return capsys.readouterr().err


def test_an_error_that_ends_lm_evals_command_is_its_message(here, capsys, monkeypatch):
    arguments, *words = TIES
    with pytest.raises(MergeError) as error:
        here(*words, "--model_args", arguments)
    assert shown(error, capsys) == f"merge-plugins: {NOT_THERE}\n"
    monkeypatch.setenv("MERGE_PLUGINS_TRACEBACK", "1")
    whole = shown(error, capsys)
    assert "Traceback (most recent call last)" in whole
    assert "in cli_evaluate" in whole
    assert whole.endswith(f"{NOT_THERE}\n")


def test_an_error_in_a_script_that_calls_lm_eval_keeps_its_traceback(evaluate, capsys):
    with pytest.raises(MergeError) as error:
        evaluate("merged", "method=TIES")
    whole = shown(error, capsys)
    assert "Traceback (most recent call last)" in whole
    assert whole.endswith(f"{NOT_THERE}\n")


def test_an_error_of_anybody_elses_keeps_its_traceback(here, capsys):
    with pytest.raises(OSError, match="/nowhere") as error:
        here("lm_eval", "--model", "hf", "--model_args", "pretrained=/nowhere/x", *TIES[4:])
    assert "Traceback (most recent call last)" in shown(error, capsys)


def test_lm_evals_command_ends_with_the_message(tasks, fewer_tasks):
    arguments, _, *words = TIES
    script = fewer_tasks("from lm_eval.__main__ import cli_evaluate\ncli_evaluate()\n")
    words += ["--model_args", arguments, "--include_path", str(tasks)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(f"\nmerge-plugins: {NOT_THERE}\n")
