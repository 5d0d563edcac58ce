"""Each spelling of lm-eval's command line and of its function runs the same merge."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

TASKS = ["tiny_choice", "tiny_generate", "tiny_rolling"]
COMMON = ("--device", "cpu", "--tasks", ",".join(TASKS), "--batch_size", "4")


@pytest.fixture(scope="module")
def hf(evaluate, saved):
    """What every spelling must repeat: stock `hf` on the merge, saved."""
    return evaluate("hf", {"pretrained": saved}, batch_size=4)


def text(recipe: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in recipe.items())


def numbers(outcome) -> dict[str, float]:
    return {
        f"{task}/{metric}": value
        for task, metrics in outcome.scores.items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "stderr" not in metric
    }


def told(outcome) -> list[str]:
    """The lines that say what a merge costs."""
    assert "merge-plugins: " not in outcome.out
    return [line for line in outcome.err.splitlines() if "merge-plugins: linear of 2 " in line]


def test_lm_eval(command, family, hf):
    recipe = text(family.recipe())
    merged = command("lm_eval", "--model", "merged", "--model_args", recipe, *COMMON)
    assert merged.answers == hf.answers
    assert numbers(merged) == numbers(hf)
    label = merged.results["config"]["model_args"]["model"]
    assert merged.results["model_name"] == merged.file.parent.name == label
    digest = merged.results["config"]["merge"]["digest"]
    assert label == f"linear-{digest}"
    (line,) = told(merged)
    assert f"merge-plugins: linear of 2 models, digest {digest}: " in line


def test_lm_eval_run_with_several_arguments(here, family, hf):
    recipe = [f"{key}={value}" for key, value in family.recipe().items()]
    merged = here("lm-eval", "run", "--model", "merged", *COMMON, "--model_args", *recipe)
    assert merged.answers == hf.answers


def test_lm_eval_run_config(here, family, hf, tmp_path):
    config = {
        "model": "merged",
        "model_args": {
            "method": "linear",
            "base_model": family.base,
            "models": {family.math: 0.6, family.code: 0.4},
        },
        "tasks": TASKS,
        "device": "cpu",
        "batch_size": 4,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    merged = here("lm-eval", "run", "--config", str(file))
    assert merged.answers == hf.answers


def test_our_own_module_where_the_hook_is_switched_off(command, family, hf, fewer_tasks):
    arguments = ("--model", "merged", "--model_args", text(family.recipe()), *COMMON)
    module = fewer_tasks(
        "import runpy\nrunpy.run_module('harness_adapters.lm_eval', run_name='__main__')"
    )
    merged = command(
        "python", module, *arguments, MERGE_PLUGINS_NO_LM_EVAL="1", MERGE_PLUGINS_QUIET="1"
    )
    assert merged.answers == hf.answers
    assert not told(merged)


def test_accelerate_launch_with_two_processes_that_share_the_work(command, family, hf, fewer_tasks):
    script = fewer_tasks(
        "import torch\n"
        "torch.cuda.device_count = lambda: 2  # HFLM shares work among processes only if so\n"
        "from lm_eval.__main__ import cli_evaluate\n"
        "cli_evaluate()\n"
    )
    launch = ("accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    options = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    arguments = ("--model", "merged", "--model_args", text(family.recipe()), *COMMON)
    merged = command(*launch, *options, script, *arguments)
    assert numbers(merged) == pytest.approx(numbers(hf), rel=1e-4)  # other batches round otherwise
    assert merged.answers.keys() == hf.answers.keys()
    assert len(told(merged)) == 1


def test_torchrun_with_tensor_parallel_weights(command, family, hf, fewer_tasks):
    script = fewer_tasks("from lm_eval.__main__ import cli_evaluate\ncli_evaluate()\n")
    launch = ("torchrun", "--standalone", "--nproc-per-node", "2", script)
    recipe = text(family.recipe(tp_plan="auto"))
    merged = command(*launch, "--model", "merged", "--model_args", recipe, *COMMON)
    assert numbers(merged) == pytest.approx(numbers(hf), rel=1e-4)  # partial sums round differently
    assert len(told(merged)) == 1


def test_simple_evaluate_with_a_dict_a_string_and_a_file(evaluate, family, hf, tmp_path):
    recipe = {
        "merge_method": "linear",
        "base_model": family.base,
        "models": [
            {"model": family.math, "parameters": {"weight": 0.6}},
            {"model": family.code, "parameters": {"weight": 0.4}},
        ],
    }
    file = tmp_path / "merge.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    spellings = [
        family.recipe(),
        {**family.recipe(), "base": family.base, "base_model": None},
        {"method": "linear", "base_model": family.base, "models": [family.math, family.code],
         "weights": [0.6, 0.4]},
        text(family.recipe()),
        f"config={file}",
    ]  # fmt: skip
    found = [evaluate("merged", spelling, batch_size=4) for spelling in spellings]
    assert all(merged.answers == hf.answers for merged in found)
    assert len({merged.results["config"]["merge"]["digest"] for merged in found}) == 1


def test_recorded_arguments_can_be_run_again(evaluate, family):
    first = evaluate("merged", family.recipe(pretrained=None, revision=None, model="None"))
    recorded = json.loads(json.dumps(first.results["config"]["model_args"]))
    assert recorded["model"].startswith("linear-")
    again = evaluate("merged", recorded)
    assert again.answers == first.answers
    assert again.results["config"]["model_args"] == recorded


def test_a_task_manager_of_the_users_own_folder_has_nothing_of_ours(tasks):
    assert TaskManager(include_path=str(tasks), include_defaults=False).all_tasks == TASKS
