"""The South-East-Asian configs in OpenCompass; in an environment of its own, see pyproject.toml.

Skipped only where OpenCompass is not installed, and not even there with REQUIRE_OPENCOMPASS=1.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import sea_rows

if not os.environ.get("REQUIRE_OPENCOMPASS"):
    pytest.importorskip("opencompass.utils", exc_type=ModuleNotFoundError)

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from mmengine.config import Config as File
from opencompass.models.base import LMTemplateParser
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.registry import ICL_PROMPT_TEMPLATES
from opencompass.summarizers import DefaultSummarizer
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask
from opencompass.utils import build_dataset_from_cfg
from opencompass.utils.prompt import get_prompt_hash
from opencompass.utils.run import match_cfg_file

from harness_adapters.commands.sea_data import FILES
from harness_adapters.lm_eval.discovery import task_folders
from harness_adapters.opencompass import merged_model
from harness_adapters.tasks.local_data import VARIABLE
from harness_adapters.tasks.opencompass import sea
from harness_adapters.tasks.sea.generate import CONFIGS
from harness_adapters.tasks.sea.suite import SUITE
from merge_plugins.demo import family

EXPECTED = json.loads(
    (Path(__file__).parents[2] / "data" / "sea-prompts.json").read_text(encoding="utf-8")
)
LENGTH = 384
"""Tokens of a prompt that the tests' model sees; the last ones."""
USER_CONFIG = """
from mmengine.config import read_base

with read_base():
    from harness_adapters.tasks.opencompass.configs.dataset_collections.sea import datasets
    from harness_adapters.tasks.opencompass.configs.summarizers.sea import summarizer
"""


@pytest.fixture(autouse=True)
def data(tmp_path_factory, monkeypatch):
    """Our rows; OpenCompass litters the folder it runs in."""
    folder = sea_rows.write(tmp_path_factory.mktemp("data"))
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def user_config(tmp_path_factory):
    """A run config that reads the suite as its reader does: from the installed package."""
    file = tmp_path_factory.mktemp("config") / "run.py"
    file.write_text(USER_CONFIG)
    return File.fromfile(file)


@pytest.mark.parametrize("config", SUITE, ids=lambda config: config.opencompass)
def test_the_suffix_is_the_hash_and_the_alias_its_config(config):
    folder = CONFIGS / "datasets" / f"sea_{config.data}"
    alias = File.fromfile(folder / f"{config.opencompass}.py")
    (named,) = folder.glob(f"{config.opencompass}_??????.py")
    whole = File.fromfile(named)
    assert [key for key in whole if key.endswith("_datasets")] == [config.variable]
    assert whole[config.variable] == alias[config.variable]
    assert get_prompt_hash(copy.deepcopy(whole[config.variable]))[:6] == named.stem[-6:]


def test_an_installed_package_can_be_read_from_a_run_config(user_config):
    assert [entry.abbr for entry in user_config.datasets] == [config.abbr for config in SUITE]
    assert len(user_config.summarizer.dataset_abbrs) == len(SUITE) + 3 + 2


def test_names_on_the_command_line_mean_one_file_each():
    """`--config-dir`: our folders are searched before OpenCompass's own."""
    places = [str(CONFIGS / "datasets"), str(CONFIGS / "dataset_collections")]
    for name in ("sea", *(config.opencompass for config in SUITE)):
        assert len(match_cfg_file(places, [name])) == 1
    assert len(match_cfg_file([str(CONFIGS / "summarizers")], ["sea"])) == 1


def test_prompts_are_sailors_byte_for_byte(user_config):
    parser = LMTemplateParser()
    for config, entry in zip(SUITE, user_config.datasets, strict=True):
        expected = EXPECTED[config.opencompass.removeprefix("sea_").removesuffix("_gen")]
        found = build_dataset_from_cfg(entry)
        template = ICL_PROMPT_TEMPLATES.build(entry.infer_cfg.prompt_template)
        retriever = ZeroRetriever(found)
        for n, (*digests, answer) in enumerate(expected):
            said = [
                retriever.generate_label_prompt(n, "", label, prompt_template=template)
                if config.choices
                else retriever.generate_prompt_for_generate_task(n, "", prompt_template=template)
                for label in (config.labels or " ")
            ]
            texts = [
                parser.parse_template(each, "ppl" if config.choices else "gen") for each in said
            ]
            assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == digests
            assert str(found.test[n][config.answer]) == answer


def test_evaluators_say_percent():
    answers = sea.AnyAnswerEvaluator().score([" a b.\nx", "c"], [["a b"], ["d"]])
    assert (answers["EM"], answers["F1"]) == (50.0, 50.0)
    assert sea.LetterEvaluator().score(["B. x", "A", "?"], ["B", "B", "B"])["EM"] == 100 / 3
    assert sea.DigitEvaluator().score(["๒"], ["2"])["EM"] == 100.0
    assert sea.ChoiceEvaluator().score(["0", 1], ["0", "1"])["EM"] == 100.0
    assert sea.AnswerEvaluator().score(["Ruộng."], ["ruộng"])["F1"] == 100.0
    assert [item["correct"] for item in answers["details"]] == [True, False]
    assert "2 predictions" in sea.ChoiceEvaluator().score(["A", "B"], ["A"])["error"]


def test_parts_of_an_exam_count_by_their_size(user_config, data):
    scores = {"sea-m3exam-th-ppl2": 50.0, "sea-m3exam-th-ppl4": 25.0, "sea-m3exam-th-ppl5": 20.0}
    entries = [entry for entry in user_config.datasets if entry.abbr in scores]
    for abbr, score in scores.items():
        file = data / "results" / "m" / f"{abbr}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"EM": score}))
    run = File({"models": [{"abbr": "m"}], "datasets": entries, "work_dir": str(data)})
    summarizer = DefaultSummarizer(run, **user_config.summarizer)
    found = summarizer._calculate_group_metrics(*summarizer._pick_up_results())[1]
    sizes = [FILES[f"m3exam/thai-questions-test-{n}.json"].n_rows for n in (2, 4, 5)]
    mean = sum(s * n for s, n in zip(scores.values(), sizes, strict=True)) / 2163
    assert found["m"]["sea-m3exam-th-ppl"]["EM"] == pytest.approx(mean)


def test_both_harnesses_see_write_and_score_the_same(user_config, data):
    """A merge of the demo family, in OpenCompass and in lm-eval, prompts cut to as many tokens."""
    models = family()
    merge: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": str(models["base"]),
        "models": [{"model": str(models[name])} for name in ("math", "sea")],
        "parameters": {"lambda": 0.5},
    }
    left = {"truncation_side": "left"}
    model = merged_model(merge, max_seq_len=LENGTH, tokenizer_kwargs=left, dtype="float32")
    wanted = {"sea-m3exam-jv": 10, "sea-xcopa-id-ppl": 0}
    entries = [entry for entry in user_config.datasets if entry.abbr in wanted]
    run = File({"models": [model], "datasets": [entries], "work_dir": str(data / "out")})
    OpenICLInferTask(run).run()
    OpenICLEvalTask(run).run()

    def read(kind: str, abbr: str) -> Any:
        return json.loads((data / "out" / kind / model["abbr"] / f"{abbr}.json").read_text())

    theirs = simple_evaluate(
        model="merged",
        model_args={
            **{"method": "task_arithmetic", "base": str(models["base"]), "lambda": 0.5},
            "models": f"{models['math']}+{models['sea']}",
            "max_length": LENGTH + wanted["sea-m3exam-jv"],
            "dtype": "float32",
        },
        tasks=["sea_m3exam_jv"],
        task_manager=TaskManager(include_path=list(task_folders()), include_defaults=False),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    samples = theirs["samples"]["sea_m3exam_jv"]
    ours = read("predictions", "sea-m3exam-jv")
    for n, sample in enumerate(samples):
        assert sample["arguments"][0][0] == ours[str(n)]["origin_prompt"]
        assert sample["resps"][0][0] == ours[str(n)]["prediction"]
    score = theirs["results"]["sea_m3exam_jv"]["em,none"]
    assert read("results", "sea-m3exam-jv")["EM"] == pytest.approx(100 * score)
    chosen = read("predictions", "sea-xcopa-id-ppl")
    right = [item["prediction"] == item["gold"] for item in chosen.values()]
    assert read("results", "sea-xcopa-id-ppl")["EM"] == 100 * sum(right) / len(right)
