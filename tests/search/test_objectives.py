"""Objectives without a harness: functions, losses and commands."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from merge_plugins import Recipe, load_merged
from merge_plugins.demo import family
from merge_plugins.demo.skills import training
from merge_plugins.errors import MergeError
from merge_plugins.search.named import objective
from merge_plugins.search.objective import Goal, Score

GOALS = {"norm": {"higher_is_better": False, "weight": 2}, "layers": None}
FUNCTION = """
import beside
def measure(model, tokenizer, recipe):
    assert not model.training and recipe.merge_method == "linear"
    norm = sum(weight.double().norm() for weight in model.parameters())
    numbers = {"norm": norm, "layers": beside.n_layers(model), "words": len(tokenizer)}
    return {**numbers, "who": id(model), "bytes": next(model.parameters()).element_size()}
def wrong(model, tokenizer, recipe):
    return {"norm": "much", "layers": 1}
def nothing(model, tokenizer, recipe):
    return None
"""
COMMAND = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
print("mounted" if config["auto_map"] and not [*folder.glob("*.safetensors")] else "no such thing")
print(json.dumps({"norm": 0.5, "layers": config["num_hidden_layers"], "other": "words"}))
print()
"""


def recipe(first: float = 0.6, **changes) -> Recipe:
    models = family()
    names = f"{models['math']}:{first}+{models['code']}:{round(1 - first, 3)}"
    return Recipe.from_model_args({"method": "linear", "models": names, **changes})


def norm(model) -> float:
    return float(sum(weight.detach().double().norm() for weight in model.parameters()))


@pytest.fixture
def built():
    """Build objectives, closed at the end."""
    opened = []

    def build(name, tasks=GOALS, settings=None, **options):
        opened.append(objective(name, tasks, settings or {}, **options))
        return opened[-1]

    yield build
    for each in opened:
        each.close()


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text("def n_layers(model): return len(model.model.layers)\n")
    (tmp_path / "measure.py").write_text(FUNCTION)
    return tmp_path / "measure.py"


def test_a_function_scores_the_live_merge(built, file):
    found = built(f"{file}:measure")
    assert found.goals == {"norm": Goal(False, 2.0), "layers": Goal(True, 1.0)}
    assert found.documents == {"norm": (), "layers": ()}
    for first in (0.6, 0.1, 0.6):
        expected = {"norm": Score(norm(load_merged(recipe(first)))), "layers": Score(3.0)}
        assert found.score(recipe(first)) == expected
    assert found.score(recipe(), {"layers": []}) == {"layers": Score(3.0)}
    other = recipe(0.1, out_dtype="float32")
    assert found.score(other)["norm"].value == norm(load_merged(other))


def test_the_model_of_a_function_is_overwritten(built, file):
    found = built(f"{file}:measure", {"who": None})
    first, second = (found.score(recipe(weight))["who"] for weight in (0.2, 0.3))
    assert first == second


def test_the_model_of_a_function_has_the_dtype_asked_for_or_the_merge_s(built, file):
    merged = built(f"{file}:measure", {"bytes": None})
    float64 = built(f"{file}:measure", {"bytes": None}, {"dtype": "float64"})
    for out, n_bytes in (("bfloat16", 2), ("float32", 4), ("bfloat16", 2)):
        assert merged.score(recipe(out_dtype=out)) == {"bytes": Score(n_bytes)}
        assert float64.score(recipe(out_dtype=out)) == {"bytes": Score(8)}


def test_an_identity_follows_the_file_the_function_and_the_settings(built, file):
    def identity(name="measure", **settings):
        return built(f"{file}:{name}", settings=settings).identity

    first = identity()
    assert first == identity(device="cpu")
    others = [identity("wrong"), identity(dtype="float64")]
    file.write_text(FUNCTION.replace("double", "float"))
    assert len({first, *others, identity()}) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/absent.py:measure", "no file"),
        ("{folder}/measure.py:mesure", "has no function 'mesure'; did you mean 'measure'"),
        ("{folder}/broken.py:measure", "broken.py failed: ZeroDivisionError: division by zero"),
        ("los=a.jsonl", "no objective 'los=a.jsonl'; did you mean 'loss'"),
        ("entropy=absent.jsonl", "absent.jsonl"),
    ],
)
def test_an_objective_that_is_not_there(name, message, built, file):
    (file.parent / "broken.py").write_text("1 / 0\n")
    with pytest.raises(MergeError, match=message):
        built(name.replace("{folder}", str(file.parent)))


def test_a_function_names_the_goals_it_has(built, file):
    for name, tasks, message in (
        ("wrong", GOALS, "norm of wrong is 'much'; a finite number"),
        ("nothing", GOALS, "nothing gave None; a mapping"),
        ("measure", {"norn": None}, "measure gave no 'norn'; did you mean 'norm'"),
    ):
        with pytest.raises(MergeError, match=message):
            built(f"{file}:{name}", tasks).score(recipe())
    with pytest.raises(MergeError, match="name the numbers"):
        built(f"{file}:measure", {})
    with pytest.raises(MergeError, match="no setting 'wait'; did you mean 'weight'"):
        built(f"{file}:measure", {"norm": {"wait": 1}})


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    found = tmp_path_factory.mktemp("data") / "examples.jsonl"
    rows = [example for example, _ in zip(training("math", 0), range(6))]  # noqa: B905
    text = (json.dumps({"input": row.prompt, "output": row.answer}) for row in rows)
    found.write_text("\n".join(text))
    return found


@pytest.mark.parametrize("name", ["loss", "entropy"])
def test_a_loss_is_lower_for_the_model_that_knows(name, built, examples):
    found = built(f"{name}={examples}", {})
    assert found.goals == {name: Goal(higher_is_better=False)}
    models = family()
    scores = {}
    for skill in ("math", "sea"):
        one = {"method": "linear", "models": f"{models[skill]}:1"}
        scores[skill] = found.score(Recipe.from_model_args(one))[name].value
    assert 0 < scores["math"] < scores["sea"]
    assert built(f"{name}={examples}", {}).identity == found.identity


def test_a_command_scores_a_folder_that_is_gone_afterwards(built, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "an eval.py"
    script.write_text(COMMAND)
    command = f"{sys.executable} '{script}' {{folder}}"
    found = built(command, settings={"timeout": 300})
    assert found.score(recipe()) == {
        "norm": Score(0.5),
        "layers": Score(3.0),
    }
    assert [*tmp_path.iterdir()] == [script]
    first = found.identity
    script.write_text(f"{COMMAND}#")
    assert found.identity != first


SAYS = f'{sys.executable} -c "{{code}}" {{{{folder}}}}'


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('almost done')", "the last line .* is 'almost done'; JSON is expected"),
        ("pass", "the last line .* is ''; JSON is expected"),
        ("print([1])", r"gave \[1\]; a mapping"),
        ("print('{}')", "gave no 'norm'"),
        ("print('null')", "gave None; a mapping"),
        ("import math; print('{\\\"norm\\\": NaN}')", "norm of .* is nan; a finite number"),
        ("import sys; sys.exit('it broke')", "failed with exit status 1; it said:\nit broke"),
        ("import os; os.kill(os.getpid(), 9)", "failed with signal 9"),
    ],
)
def test_a_command_that_fails_says_so(code, message, built):
    found = built(SAYS.format(code=code), {"norm": None})
    with pytest.raises(MergeError, match=message):
        found.score(recipe())


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(built, tmp_path):
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"pathlib.Path('{pid}').write_text(str(child.pid)); time.sleep(600)"
    )
    found = built(SAYS.format(code=code), settings={"timeout": 2})
    with pytest.raises(MergeError, match="took more than 2 seconds and was ended"):
        found.score(recipe())
    deadline = time.monotonic() + 20
    while _runs(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("evaluate {folder}", {}, "no program 'evaluate' to run"),
        (f"{sys.executable} '{{folder}}", {}, "No closing quotation"),
        (f"{sys.executable} {{folder}}", {"timeout": 0}, "timeout is seconds, more than 0"),
        (f"{sys.executable} {{folder}}", {"timeout": "long"}, "timeout is seconds"),
        (f"{sys.executable} {{folder}}", {"dtype": "auto"}, "takes timeout .* and no 'dtype'"),
    ],
)
def test_a_command_that_cannot_run(command, settings, message, built):
    with pytest.raises(MergeError, match=message):
        built(command, settings=settings)


def test_a_harness_is_found_by_its_entry_point():
    pytest.importorskip("lm_eval")
    from harness_adapters.lm_eval import Evaluator

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    group = text.partition('[project.entry-points."merge_plugins.objectives"]\n')[2]
    name, _, value = group.partition("\n")[0].partition(" = ")
    loaded = EntryPoint(name, value.strip('"'), "merge_plugins.objectives").load()
    assert loaded == Evaluator.from_settings


def test_a_harness_that_is_not_installed(built, tmp_path, monkeypatch):
    info = tmp_path / "other_harness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-harness\nVersion: 1.0\nProvides-Extra: theirs\n"
    )
    (info / "entry_points.txt").write_text(
        "[merge_plugins.objectives]\ntheirs = no_such_harness:build\nbare = no_such_harness:build\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, hint in (("theirs", r': .*pip install "other-harness\[theirs\]"'), ("bare", "")):
        message = f"objective {name} needs no_such_harness, which is not installed{hint}$"
        with pytest.raises(MergeError, match=message):
            built(name)
