"""A routed merge in lm-eval: every request is scored with the weights of its own prompt."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from harness_adapters.lm_eval import MergedLM
from harness_adapters.lm_eval.discovery import task_folders
from merge_plugins import demo
from merge_plugins.demo.skills import SKILLS, training
from merge_plugins.errors import RecipeError

TASKS = [f"merge_demo_{skill}" for skill in SKILLS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few dozen prompts of each skill, none of them in a test set."""
    folder = tmp_path_factory.mktemp("data")
    for skill in SKILLS:
        rows = [{"prompt": e.prompt, "response": e.answer} for e in islice(training(skill, 7), 60)]
        (folder / skill).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "+".join(str(folder / skill) for skill in SKILLS)


def arguments(**given):
    """Return model_args of a routed merge of the demo's experts."""
    models = demo.family()
    experts = "+".join(str(models[skill]) for skill in SKILLS)
    held = {"base": str(models["base"]), "models": experts, "dtype": "float32"}
    return {"method": "twin_merging", **held, **given}


def scores(model_args, limit=None):
    ours = TaskManager(include_path=list(task_folders()), include_defaults=False)
    found = evaluator.simple_evaluate(
        "merged",
        model_args,
        tasks=TASKS,
        task_manager=ours,
        batch_size=64,
        device="cpu",
        limit=limit,
        bootstrap_iters=0,
    )
    return [100 * found["results"][task]["exact_match,none"] for task in TASKS]


@pytest.fixture(scope="module")
def shared():
    """Scores of the shared expert alone."""
    return scores(arguments(method="task_arithmetic", **{"lambda": 0.3}))


@pytest.mark.parametrize("router", ["mlp", "centroid", "oracle"])
def test_routing_recovers_what_the_shared_expert_lacks(router, data, shared):
    learns = {"tasks": "+".join(TASKS)} if router == "oracle" else {"data": data}
    routed = scores(arguments(router=router, **learns))
    assert sum(routed) > sum(shared) + 3
    assert min(routed) >= 94  # the experts themselves: 100, 100 and 96


@pytest.fixture(scope="module")
def lm(data):
    return MergedLM(**arguments(router="centroid", data=data), device="cpu", batch_size=8)


PROMPTS = [
    'def times_7(x):\n    """Return x times 7."""\n    return',
    "Tulis 45 dengan huruf:",
    "What is 3 + 4?",
]
ANSWERS = (" x * 7", " empat", " 7 and more", " x")


def asked(kind, *rows, task="tiny"):
    return [Instance(kind, {}, row, i, (task, i, 1)) for i, row in enumerate(rows)]


def alone(lm, prompt, answer, weights):
    """Log-probability of an answer, computed without lm-eval."""
    known, whole = lm.tok_encode(prompt), lm.tok_encode(prompt + answer)
    with torch.no_grad(), lm.model.routed(weights):
        scored = lm.model(torch.tensor([whole])).logits.log_softmax(-1)[0]
    return sum(float(scored[i - 1, whole[i]]) for i in range(len(known), len(whole)))


def test_every_answer_to_a_prompt_has_the_weights_of_the_prompt(lm):
    rows = [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    found = lm.loglikelihood(asked("loglikelihood", *rows))
    weights = lm.model.routing.weigh([lm.tok_encode(prompt) for prompt in PROMPTS])
    assert len({tuple(row.round(decimals=3).tolist()) for row in weights}) > 1
    for (prompt, answer), (logprob, _) in zip(rows, found, strict=True):
        expected = alone(lm, prompt, answer, weights[PROMPTS.index(prompt)])
        assert logprob == pytest.approx(expected, abs=1e-3)


def test_equal_rows_split_at_different_places_keep_their_own_prompts(lm):
    # lm-eval runs rows of equal tokens once
    rows = [("def f(x):\n    return", " x * 7"), ("def f(x):\n    return x *", " 7"), ("def", " f")]
    found = lm.loglikelihood(asked("loglikelihood", *rows))
    for (prompt, answer), (logprob, _) in zip(rows, found, strict=True):
        weights = lm.model.routing.weigh([lm.tok_encode(prompt)])
        assert logprob == pytest.approx(alone(lm, prompt, answer, weights), abs=1e-3)


def test_a_text_without_a_prompt_is_its_own(lm):
    (found,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (PROMPTS[1],)))
    ids = [lm.prefix_token_id, *lm.tok_encode(PROMPTS[1])]
    weights = lm.model.routing.weigh([ids[:-1]])
    with torch.no_grad(), lm.model.routed(weights):
        scored = lm.model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    expected = sum(float(scored[i, token]) for i, token in enumerate(ids[1:]))
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_batch_generates_what_each_prompt_does_alone(lm):
    options = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    requests = asked("generate_until", *((prompt, dict(options)) for prompt in PROMPTS))
    together = lm.generate_until(requests)
    assert together == [lm.generate_until([request])[0] for request in requests]


def test_an_oracle_hears_the_task_of_each_request():
    lm = MergedLM(**arguments(router="oracle", tasks="a*+b+c"), device="cpu", batch_size=8)
    rows = [(PROMPTS[0], answer) for answer in ANSWERS[:2]]
    mixed = [
        Instance("loglikelihood", {}, row, 0, (task, 0, 1)) for row in rows for task in ("c", "ab")
    ]
    found = lm.loglikelihood(mixed)
    for request, (logprob, _) in zip(mixed, found, strict=True):
        weights = [0.0, 0.0, 1.0] if request.task_name == "c" else [1.0, 0.0, 0.0]
        assert logprob == pytest.approx(alone(lm, *request.args, weights), abs=1e-3)
    with pytest.raises(RecipeError, match="task 'd' belongs to no expert"):
        lm.loglikelihood(asked("loglikelihood", rows[0], task="d"))


@pytest.mark.parametrize("option", ["peft", "load_in_4bit"])
def test_what_does_not_go_with_routing_is_refused_by_name(option, tmp_path: Path):
    with pytest.raises(RecipeError, match=f"{option}= does not go with twin_merging"):
        MergedLM(**arguments(router="fixed", **{option: str(tmp_path)}), device="cpu")
