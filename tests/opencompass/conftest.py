"""A folder with the demo family, its merge on disk and two data sets; OpenCompass runs in it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from needed import need

from merge_plugins import Recipe, save
from merge_plugins.demo import family
from merge_plugins.demo.skills import held_out

HERE = Path(__file__).parent
Launch = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def opencompass() -> None:
    need("opencompass.cli.main", "REQUIRE_OPENCOMPASS")


def spelled(scale: float) -> str:
    """The text of a recipe whose models lie in ../family; a negative scale makes a wreck of it."""
    models = [{"model": "../family/math"}, {"model": "../family/sea"}]
    held = {"merge_method": "task_arithmetic", "base_model": "../family/base", "models": models}
    return yaml.safe_dump({**held, "parameters": {"lambda": scale}})


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes in good/ and wrecked/, what the good one makes in saved/, and rows of two skills."""
    root = tmp_path_factory.mktemp("workplace")
    for name, folder in family().items():
        shutil.copytree(folder, root / "family" / name)
    for name, scale in (("good", 0.5), ("wrecked", -3.0)):
        (root / name).mkdir()
        (root / name / "recipe.yaml").write_text(spelled(scale))
    save(Recipe.load(root / "good" / "recipe.yaml"), root / "saved")
    stories = [{"prompt": e.prompt, "answer": [e.answer]} for e in held_out("math", 12)]
    numbers = [e for e in held_out("sea", 60) if e.answer != e.slip][:18]
    write(root / "stories.jsonl", stories)
    write(root / "numbers.jsonl", [two_ways(e, n % 2 == 0) for n, e in enumerate(numbers)])
    return root


def two_ways(example: Any, is_first: bool) -> dict[str, str]:
    """An example as a choice between its answer and the slip."""
    first, second = (example.answer, example.slip)[:: 1 if is_first else -1]
    label = "A" if is_first else "B"
    return {"prompt": example.prompt, "first": first, "second": second, "label": label}


def write(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


DATA_SETS = """
from opencompass.datasets.custom import CustomDataset
from opencompass.openicl.icl_evaluator import AccEvaluator, EMEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

stories = dict(
    abbr="stories",
    type=CustomDataset,
    path="stories.jsonl",
    reader_cfg=dict(input_columns=["prompt"], output_column="answer"),
    infer_cfg=dict(
        prompt_template=dict(type=PromptTemplate, template="{prompt}"),
        retriever=dict(type=ZeroRetriever),
        inferencer=dict(type=GenInferencer, max_out_len=24, stopping_criteria=["\\n"]),
    ),
    eval_cfg=dict(evaluator=dict(type=EMEvaluator)),
)
numbers = dict(
    abbr="numbers",
    type=CustomDataset,
    path="numbers.jsonl",
    reader_cfg=dict(input_columns=["prompt", "first", "second"], output_column="label"),
    infer_cfg=dict(
        prompt_template=dict(
            type=PromptTemplate, template={"A": "{prompt}{first}", "B": "{prompt}{second}"}
        ),
        retriever=dict(type=ZeroRetriever),
        inferencer=dict(type=PPLInferencer),
    ),
    eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
)
"""
MODELS = """
from harness_adapters.opencompass import MergedCausalLM, MergedWithChatTemplate
from stock_models import Stock, StockChat

on_cpu = dict(max_out_len=24, run_cfg=dict(num_gpus=0))
"""


@pytest.fixture
def launch(opencompass: None, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Run a config of these models and data sets with our launcher; return status and stderr."""
    from harness_adapters.opencompass.__main__ import main

    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    def run(config: str, *options: str) -> tuple[int, str]:
        (workplace / "run.py").write_text(MODELS + DATA_SETS + config)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = main(["run.py", "-w", "out", *options])
        return status, said.getvalue()

    return run
