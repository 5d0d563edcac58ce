"""The South-East-Asian tasks in lm-eval: Sailor's prompts, and one row of each scored for real."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sea_rows
from lm_eval import simple_evaluate
from lm_eval import tasks as lm_eval_tasks
from lm_eval.tasks import TaskManager

from harness_adapters.commands.sea_data import FILES
from harness_adapters.lm_eval.discovery import task_folders
from harness_adapters.tasks.local_data import VARIABLE
from harness_adapters.tasks.scoring import sea
from harness_adapters.tasks.sea.rows import rows
from harness_adapters.tasks.sea.suite import SUITE, Config

EXPECTED = json.loads(
    (Path(__file__).parents[1] / "data" / "sea-prompts.json").read_text(encoding="utf-8")
)
SHARED = Path(__file__).parents[3] / "shared" / "data"
N_REAL = 50
GENERATED = [config for config in SUITE if not config.choices]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """lm-eval's tasks over our rows, by name."""
    folder = sea_rows.write(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder))
        yield loaded([config.lm_eval for config in SUITE])


def loaded(names: list[str]) -> dict[str, Any]:
    found = manager().load(names)
    return found.get("tasks", found)


def manager() -> TaskManager:
    return TaskManager(include_path=list(task_folders()), include_defaults=False)


def prompts(task: Any, config: Config, limit: int | None = None) -> list[list[str]]:
    """Each row's prompts, with an answer where there are answers to choose from."""
    found = []
    for row in list(task.test_docs())[:limit]:
        context = task.fewshot_context(row, num_fewshot=0)
        asked = task.construct_requests(row, context, metadata=(config.lm_eval, 0, 1))
        asked = asked if isinstance(asked, list) else [asked]
        found.append(
            ["".join(request.args) if config.choices else request.args[0] for request in asked]
        )
    return found


@pytest.mark.parametrize("config", SUITE, ids=lambda config: config.lm_eval)
def test_prompts_are_sailors_byte_for_byte(config, ours):
    expected = EXPECTED[config.opencompass.removeprefix("sea_").removesuffix("_gen")]
    digests = [
        [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in each]
        for each in prompts(ours[config.lm_eval], config)
    ]
    assert digests == [row[:-1] for row in expected]


@pytest.mark.parametrize("config", SUITE, ids=lambda config: config.lm_eval)
def test_right_answers_are_sailors(config, ours):
    task = ours[config.lm_eval]
    expected = EXPECTED[config.opencompass.removeprefix("sea_").removesuffix("_gen")]
    for row, (*_, answer) in zip(task.test_docs(), expected, strict=True):
        if config.choices:
            assert config.labels[task.doc_to_target(row)] == answer
        else:
            assert str(row[config.answer]) == answer
            right = row[config.answer][0] if config.score == "any_answer" else row[config.answer]
            assert task.process_results(row, [f" {right}\nมากกว่า"])["em"] == 1.0


@pytest.mark.parametrize("config", GENERATED, ids=lambda config: config.lm_eval)
def test_answers_are_as_long_as_sailors_and_end_nowhere_else(config, ours):
    task = ours[config.lm_eval]
    row = next(iter(task.test_docs()))
    request = task.construct_requests(row, "x", metadata=(config.lm_eval, 0, 1))
    limits = (request if not isinstance(request, list) else request[0]).args[1]
    assert limits == {"until": [], "do_sample": False, "max_gen_toks": config.max_out_len}


def test_multiple_choice_says_that_it_is_not_sailors_perplexity(ours):
    for config in SUITE:
        note = ours[config.lm_eval].config.metadata.get("note", "")
        assert ("perplexity" in note) == config.lm_eval.partition("_ll")[1].startswith("_ll")


def test_no_name_is_one_of_lm_evals_own():
    own = re.compile(r"^(?:task|group|tag):\s*[\"']?(sea(?:_\w+)?)[\"']?\s*$", re.MULTILINE)
    folder = Path(lm_eval_tasks.__file__).parent
    there = {
        name
        for file in folder.glob("**/*.yaml")
        for name in own.findall(file.read_text(encoding="utf-8"))
    }
    names = manager().all_tasks
    assert not there & {name for name in names if re.fullmatch(r"sea(_\w+)?", name)}
    assert {config.lm_eval for config in SUITE} <= {*names}


@pytest.fixture(scope="module")
def evaluate(ours, llamas):
    """Score tasks on a tiny model."""

    def run(*tasks: str, limit: int | None = None) -> Any:
        return simple_evaluate(
            model="hf",
            model_args={"pretrained": llamas["base"]},
            tasks=list(tasks),
            task_manager=manager(),
            limit=limit,
            device="cpu",
            batch_size=8,
            bootstrap_iters=0,
        )

    return run


@pytest.fixture(scope="module")
def scored(evaluate):
    """One row of each task."""
    return evaluate("sea", limit=1)


def test_the_group_scores_all_nineteen(scored):
    assert scored["samples"].keys() == {config.lm_eval for config in SUITE}
    for config in SUITE:
        result = scored["results"][config.lm_eval]
        for metric in ("acc", "acc_norm") if config.choices else ("em",):
            assert result[f"{metric},none"] in (0.0, 1.0)


def test_scores_are_those_of_the_scoring_module(scored):
    score = {
        "answer": sea.answer_scores,
        "any_answer": sea.any_answer_scores,
        "letter": sea.letter_scores,
        "digit": sea.digit_scores,
    }
    for config in GENERATED:
        (sample,) = scored["samples"][config.lm_eval]
        wanted = score[config.score](sample["resps"][0][0], sample["doc"][config.answer])
        assert {metric: sample[metric] for metric in wanted} == wanted


def test_parts_of_an_exam_count_by_their_size(evaluate):
    found = evaluate("sea_m3exam_th_ll")
    rows_of_all = [sample for samples in found["samples"].values() for sample in samples]
    assert sorted(map(len, found["samples"].values())) == [2, 2, 3]
    mean = sum(sample["acc"] for sample in rows_of_all) / 7
    assert found["results"]["sea_m3exam_th_ll"]["acc,none"] == pytest.approx(mean)


@pytest.mark.skipif(not SHARED.is_dir(), reason="Sailor's files are not beside this checkout")
def test_prompts_of_real_rows_are_the_protocols(monkeypatch):
    monkeypatch.setenv(VARIABLE, str(SHARED))
    protocol = json.loads((SHARED / "sea_protocol.json").read_text(encoding="utf-8"))
    theirs = {name.rpartition("_")[0]: config for name, (config,) in protocol.items()}
    for config in SUITE:
        found = prompts(loaded([config.lm_eval])[config.lm_eval], config, N_REAL)
        assert len(found) == min(N_REAL, FILES[config.file].n_rows)
        name = config.opencompass.removeprefix("sea_").removesuffix("_gen")
        template = theirs[name]["infer_cfg"]["prompt_template"]["template"]
        templates = [template] if "begin" in template else list(template.values())
        for row, said in zip(rows(config.file), found, strict=False):
            assert said == [filled(template, row) for template in templates]


def filled(template: dict[str, Any], row: dict[str, Any]) -> str:
    text = "\n".join(said["prompt"] for said in template["begin"] + template["round"])
    for column, value in row.items():
        text = text.replace(f"{{{column}}}", str(value))
    return text
