"""Whole runs: the launcher, the processes it starts, the files it leaves, its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness_adapters.opencompass import merged_model
from harness_adapters.opencompass.__main__ import main
from merge_plugins import Recipe, identity

pytestmark = pytest.mark.usefixtures("opencompass")
REPOSITORY = Path(__file__).parents[2]
MERGE = 'dict(on_cpu, type=MergedCausalLM, recipe="good/recipe.yaml"'


def newest(workplace: Path) -> Path:
    return max((workplace / "out").iterdir())


def predictions(run: Path, model: str, dataset: str) -> list[dict]:
    (folder,) = (run / "predictions").glob(f"{model}*")
    held = json.loads((folder / f"{dataset}.json").read_text())
    return [held[key] for key in sorted(held, key=int)]


def score(run: Path, abbr: str, dataset: str, metric: str) -> float:
    return json.loads((run / "results" / abbr / f"{dataset}.json").read_text())[metric]


def example() -> str:
    """The run config that docs/harnesses.md shows."""
    text = (REPOSITORY / "docs" / "harnesses.md").read_text(encoding="utf-8")
    section = text.split("\n## OpenCompass\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_the_documented_config_runs_in_processes_of_its_own(workplace):
    text = (workplace / "good" / "recipe.yaml").read_text()
    (workplace / "merge.yaml").write_text(text.replace("../", ""))
    (workplace / "documented.py").write_text(example())
    command = [sys.executable, "-m", "harness_adapters.opencompass", "documented.py"]
    done = subprocess.run(
        [*command, "-w", "documented"], cwd=workplace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (workplace / "documented").iterdir()
    abbr = f"task_arithmetic-math+sea-{identity.digest(Recipe.load(workplace / 'merge.yaml'))}"
    assert score(run, abbr, "stories", "score") >= 75
    assert score(run, abbr, "numbers", "accuracy") >= 75
    (log,) = (run / "logs" / "infer").rglob("*.out")
    assert log.read_text().count("merged task_arithmetic-") == 1, "for two data sets"


def test_a_wreck_in_a_recipe_of_the_same_name_inherits_no_score(launch, workplace):
    config = "\nmodels = [dict(on_cpu, type=MergedCausalLM, recipe='now.yaml')]\n"
    config += "datasets = [stories, numbers]\n"
    for name in ("good", "wrecked"):
        text = (workplace / name / "recipe.yaml").read_text()
        (workplace / "now.yaml").write_text(text.replace("../", ""))
        again = ("-r", newest(workplace).name) if name == "wrecked" else ()
        status, said = launch(config, "--debug", *again)
        assert status == 0, said
    run = newest(workplace)
    abbrs = [
        f"task_arithmetic-math+sea-{identity.digest(Recipe.load(workplace / name / 'recipe.yaml'))}"
        for name in ("good", "wrecked")
    ]
    assert [score(run, abbr, "stories", "score") >= 75 for abbr in abbrs] == [True, False]
    assert [score(run, abbr, "numbers", "accuracy") >= 75 for abbr in abbrs] == [True, False]
    assert score(run, abbrs[1], "stories", "score") == 0


COMPARED = """
here = dict(on_cpu, path="saved", model_kwargs=dict(torch_dtype="torch.bfloat16"))
base = [
    dict(here, abbr="stock-1", type=Stock, batch_size=1),
    dict(here, abbr="stock-4", type=Stock, batch_size=4),
    dict(on_cpu, abbr="ours-1", type=MergedCausalLM, recipe="good/recipe.yaml", batch_size=1),
    dict(on_cpu, abbr="ours-4", type=MergedCausalLM, recipe="good/recipe.yaml", batch_size=4),
    dict(
        on_cpu,
        abbr="legacy-4",
        type=MergedCausalLM,
        recipe="good/recipe.yaml",
        batch_size=4,
        legacy_left_padding=True,
    ),
]
chat = [
    dict(here, abbr="stock-chat", type=StockChat, batch_size=4),
    dict(on_cpu, abbr="ours-chat", type=MergedWithChatTemplate, recipe="chat.yaml", batch_size=4),
]
models = base + chat
datasets = [stories, numbers]
model_dataset_combinations = [
    dict(models=base, datasets=datasets),
    dict(models=chat, datasets=[stories]),
]
"""
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_predictions_are_byte_for_byte_those_of_the_stock_class(launch, workplace):
    held = Recipe.load(workplace / "good" / "recipe.yaml").as_dict()
    (workplace / "chat.yaml").write_text(json.dumps({**held, "chat_template": CHAT}))
    (workplace / "saved" / "chat_template.jinja").write_text(CHAT)
    status, said = launch(COMPARED, "--debug", "-m", "infer")
    assert status == 0, said
    run = newest(workplace)

    def answers(model, dataset):
        (file,) = (run / "predictions").glob(f"{model}*/{dataset}.json")
        return file.read_bytes()

    for ours, stock in (("ours-1", "stock-1"), ("legacy-4", "stock-4")):
        assert answers(ours, "stories") == answers(stock, "stories")
        assert answers(ours, "numbers") == answers(stock, "numbers")
    assert answers("ours-chat", "stories") == answers("stock-chat", "stories")
    assert answers("ours-4", "stories") == answers("stock-4", "stories")
    assert answers("ours-4", "numbers") != answers("stock-4", "numbers")
    for row, alone in zip(
        predictions(run, "ours-4", "numbers"), predictions(run, "stock-1", "numbers"), strict=True
    ):
        assert row["prediction"] == alone["prediction"]
        assert row["label: A"]["PPL"] == pytest.approx(alone["label: A"]["PPL"], rel=0.02)


def test_a_missing_result_is_a_failure_with_the_end_of_its_log(launch, workplace):
    lost = f'\nmodels = [{MERGE})]\ndatasets = [dict(stories, path="no-such-rows.jsonl")]\n'
    status, said = launch(lost, "-m", "infer")
    assert status == 1
    digest = identity.digest(Recipe.load(workplace / "good" / "recipe.yaml"))
    assert f"NO RESULT of task_arithmetic-math+sea-{digest} on stories: no predictions" in said
    assert "AssertionError: No valid url for no-such-rows.jsonl" in said
    assert f"the same command with -r {newest(workplace).name}" in said


def test_a_model_too_few_for_the_gpus_has_its_data_cut_and_no_piece_is_lost(
    launch, workplace, monkeypatch
):
    from harness_adapters.opencompass import models

    made = []
    load = models.load_merged
    monkeypatch.setattr(models, "load_merged", lambda *a, **k: made.append(1) or load(*a, **k))
    config = f"\nmodels = [{MERGE})]\ndatasets = [numbers]\n"
    status, said = launch(config, "--debug", "--max-num-workers", "2")
    assert status == 0, said
    assert len(made) == 1, "in one process a model is merged once"
    run = newest(workplace)
    (folder,) = (run / "predictions").iterdir()
    assert {file.name for file in folder.iterdir()} == {"numbers_0.json", "numbers_1.json"}
    (folder / "numbers_1.json").unlink()
    status, said = launch(config, "--max-num-workers", "2", "-m", "eval", "-r", run.name)
    assert status == 1
    assert "no predictions for numbers_1" in said


SRUN = """#!/bin/sh
echo "$@" > srun.log
while [ "${1#-}" != "$1" ]; do
    case "$1" in -p|-J) shift ;; esac
    shift
done
exec "$@"
"""


def test_slurm_gets_one_task_for_a_model_and_needs_no_more_than_the_config(
    launch, workplace, monkeypatch
):
    (workplace / "srun").write_text(SRUN)
    (workplace / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{workplace}:{os.environ['PATH']}")
    options = ("--slurm", "-p", "debug", "--debug", "-m", "infer")
    status, said = launch(f"\nmodels = [{MERGE})]\ndatasets = [stories]\n", *options)
    assert status == 1
    assert "run_cfg=dict(num_gpus=1)" in said
    config = f"\nmodels = [{MERGE}, run_cfg=dict(num_gpus=1))]\ndatasets = [stories, numbers]\n"
    status, said = launch(config.replace("on_cpu, ", "max_out_len=24, "), *options)
    assert status == 0, said
    assert "-p debug --gres=gpu:1" in (workplace / "srun.log").read_text()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (f"models = [{MERGE}), {MERGE}, batch_size=2)]", "2 models are called task_arithmetic-"),
        (f"models = [{MERGE})]\ndatasets *= 2", "2 datasets are called stories"),
        (
            f"models = [{MERGE}).copy()]\nmodels[0]['type'] = MergedWithChatTemplate",
            "numbers scores texts (PPLInferencer)",
        ),
        (f"models = [{MERGE}, run_cfg=dict(num_gpus=64))]".replace("on_cpu, ", ""), "64 GPUs"),
        ("models = []", "a run config has a list 'models'"),
        (f"models = [{MERGE}, dtype='half')]", "dtype is one of"),
    ],
)
def test_a_config_that_cannot_be_meant_stops_before_a_task_starts(launch, config, said):
    status, told = launch(f"\ndatasets = [stories, numbers]\n{config}\n")
    assert status == 1
    assert said in told


OWN_WAY = """
from opencompass.partitioners import NaivePartitioner
from opencompass.runners import SlurmRunner
from opencompass.tasks import OpenICLInferTask

infer = dict(
    partitioner=dict(type=NaivePartitioner, n=7),
    runner=dict(type=SlurmRunner, partition="x", task=dict(type=OpenICLInferTask)),
)
datasets = [stories]
"""


def test_a_config_that_says_how_to_run_is_left_alone(launch, workplace):
    from mmengine.config import Config

    config = f"{OWN_WAY}\nmodels = [{MERGE}, run_cfg=dict(num_gpus=1))]\n"
    status, said = launch(config.replace("on_cpu, ", ""), "--dry-run")
    assert status == 0, said
    (file,) = newest(workplace).glob("configs/*.py")
    held = Config.fromfile(str(file)).to_dict()
    assert held["infer"]["partitioner"]["n"] == 7
    assert held["infer"]["runner"]["type"] == "opencompass.runners.SlurmRunner"
    assert held["models"][0]["run_cfg"] == {"num_gpus": 1}


@pytest.mark.parametrize(
    ("n_gpus", "n_models", "n_each", "side_by_side", "processes"),
    [(8, 1, 1, 8, 8), (8, 3, 1, 8, 2), (8, 1, 4, 2, 2), (2, 2, 1, 2, None), (1, 1, 1, 1, None)],
)
def test_every_gpu_gets_a_process_and_no_model_more_than_it_needs(
    monkeypatch, tmp_path, n_gpus, n_models, n_each, side_by_side, processes
):
    from opencompass.cli.main import parse_args

    from harness_adapters.opencompass.runs import Run

    monkeypatch.setattr(sys, "argv", ["opencompass", "run.py"])
    models = [{"abbr": str(n), "run_cfg": {"num_gpus": n_each}} for n in range(n_models)]
    run = Run({"models": models, "datasets": []}, parse_args(), [], tmp_path, n_gpus)
    infer = run.config["infer"]
    assert infer["runner"]["max_num_workers"] == side_by_side
    assert infer["partitioner"].get("num_worker") == processes


def test_stock_opencompass_reads_a_config_that_calls_our_helper(launch, workplace, monkeypatch):
    from mmengine.config import Config

    monkeypatch.chdir(workplace)
    (workplace / "called.py").write_text(
        "models = [__import__('harness_adapters.opencompass.configs', fromlist=['_'])"
        ".merged_model('good/recipe.yaml', batch_size=2)]\n"
    )
    held = Config.fromfile("called.py").to_dict()
    assert held["models"] == [merged_model("good/recipe.yaml", batch_size=2)]
    assert main(["called.py"]) == 1, "it has no data sets"
