"""bigcode-evaluation-harness: the stock command on a recipe folder, and our launcher.

Every test runs on a stand-in; where BIGCODE_EVAL_HARNESS names a checkout, on the harness too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets.config
import pytest
from memorised import PASS_AT_1, PROBLEMS, Memorised
from transformers import AutoTokenizer

from harness_adapters.bigcode import harness as checkout
from harness_adapters.bigcode import run as bigcode
from harness_adapters.tasks.scoring.code import humaneval_program, humaneval_prompt
from merge_plugins import Recipe, identity, mount, save

STAND_IN = Path(__file__).parent / "stand_in"
REAL = os.environ.get("BIGCODE_EVAL_HARNESS")
pytestmark = [pytest.mark.filterwarnings("ignore")] if REAL else []  # not ours to mend
PLACES = {"stand-in": STAND_IN, **({"real": Path(REAL)} if REAL else {})}
GREEDY = ["--do_sample", "False", "--max_length_generation", "128"]
LONG_ENOUGH = ["--max_length_generation", "224"]
FIRST_SIX = ["--limit", "6"]
COMMON = ["--tasks", "mbpp", "--allow_code_execution", "--save_generations", *GREEDY]
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """ Return twice x. """\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
Launch = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with MBPP's data: six problems, and fillers up to its 500."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    fillers = [{**PROBLEMS[-1], "task_id": 9100 + i} for i in range(494)]
    for name, rows in (("mbpp", [*PROBLEMS, *fillers]), ("openai_humaneval", [HUMANEVAL])):
        (tmp_path / name).mkdir()
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / name / "test.jsonl").write_text(text)
    return tmp_path


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """A checkout of the harness, or what stands in for it; imported afresh."""
    path, environment = [*sys.path], dict(os.environ)
    yield request.param
    sys.path[:] = path
    os.environ.clear()  # the harness switches the running of code on
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.partition(".")[0] == "bigcode_eval"]:
        del sys.modules[name]


@pytest.fixture
def launch(place: Path) -> Launch:
    """Run the launcher in this process."""

    def run(recipe: Path | str, *words: str, common: list[str] = COMMON) -> int:
        return bigcode.main(["--harness", str(place), "--model", str(recipe), *common, *words])

    return run


def answers(recipe: Recipe, folder: Path, marks: str = "limit6", task: str = "mbpp") -> Any:
    """Read the generations of a recipe."""
    marks = marks and f"_{marks}"
    return json.loads(
        (folder / f"generations_{identity.label(recipe)}{marks}_{task}.json").read_text()
    )


def score(recipe: Recipe, folder: Path, marks: str = "limit6") -> float:
    """Read the share of problems that a recipe solved."""
    marks = marks and f"_{marks}"
    held = json.loads(
        (folder / f"evaluation_results_{identity.label(recipe)}{marks}.json").read_text()
    )
    assert held["merge"]["digest"] == identity.digest(recipe)
    return held["mbpp"]["pass@1"]


def test_several_recipes_are_scored_in_one_run(
    launch: Launch, memorised: Memorised, folder: Path
) -> None:
    merge = memorised.write_recipe(folder / "merge.yaml")
    alone = Recipe.from_mapping(
        {"merge_method": "passthrough", "models": [{"model": memorised.left}]}
    )
    (folder / "left.yaml").write_text(alone.to_yaml())
    assert launch("merge.yaml,left.yaml", *FIRST_SIX) == 0
    assert score(Recipe.load(merge), folder) == PASS_AT_1["merge"] == 0.5
    assert score(alone, folder) == pytest.approx(PASS_AT_1["left"])
    programs = answers(Recipe.load(merge), folder)
    assert [len(each) for each in programs] == [1] * 6
    assert programs[0][0].endswith(PROBLEMS[0]["code"])


def test_a_wrecked_recipe_under_the_same_name_scores_nothing(
    launch: Launch, memorised: Memorised, folder: Path
) -> None:
    file = memorised.write_recipe(folder / "merge.yaml")
    assert launch(file, *FIRST_SIX) == 0
    memorised.write_recipe(file, weight=-1.0)
    assert launch(file, *FIRST_SIX) == 0
    assert score(memorised.recipe(-1.0), folder) == 0
    assert score(memorised.recipe(), folder) == 0.5


def test_the_stock_command_scores_a_recipe_folder_as_the_saved_merge(
    place: Path, launch: Launch, memorised: Memorised, folder: Path, monkeypatch: Any
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "code"))
    harness = checkout.Harness.load(place)
    recipe = memorised.recipe()
    mount(recipe, folder / "mounted")
    save(recipe, folder / "saved")
    memorised.write_recipe(folder / "merge.yaml")
    launch("merge.yaml", *FIRST_SIX)
    ours = (folder / f"generations_{identity.label(recipe)}_limit6_mbpp.json").read_bytes()
    for model, trust in (("mounted", ["--trust_remote_code"]), ("saved", [])):
        paths = ["--save_generations_path", f"{model}.json", "--metric_output_path", "scores.json"]
        words = ["main.py", "--model", model, *trust, *paths, *COMMON, *FIRST_SIX]
        monkeypatch.setattr(sys, "argv", words)
        harness.main.main()
        assert (folder / f"{model}_mbpp.json").read_bytes() == ours
        assert json.loads((folder / "scores.json").read_text())["mbpp"] == {"pass@1": 0.5}
    monkeypatch.setattr(sys, "argv", ["main.py", "--model", "mounted", *COMMON, *FIRST_SIX])
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        harness.main.main()


def test_the_seeds_prompt_is_a_choice(launch: Launch, memorised: Memorised, folder: Path) -> None:
    file = memorised.write_recipe(folder / "merge.yaml")
    assert launch(file, *FIRST_SIX, *LONG_ENOUGH, "--prompt", "alpaca") == 0
    recipe = memorised.recipe()
    assert score(recipe, folder, "alpaca_limit6") == 0.5
    programs = [each for (each,) in answers(recipe, folder, "alpaca_limit6")]
    assert programs[:3] == [row["code"] for row in PROBLEMS[:3]]
    assert launch(file, *FIRST_SIX, "--prompt", "incoder") == 0
    assert answers(recipe, folder)[0][0].startswith('"""\n')


def test_humaneval_asks_as_the_seeds_and_runs_a_whole_program(
    place: Path, memorised: Memorised
) -> None:
    harness = checkout.Harness.load(place)
    args = harness.parse_args(["--tasks", "humaneval", "--prompt", "alpaca", "--generation_only"])
    tokenizer = AutoTokenizer.from_pretrained(memorised.base)
    own = harness.registry.TASK_REGISTRY["humaneval"]
    with checkout.prompted(harness, args, tokenizer):
        task = harness.registry.get_task("humaneval", args)
        prompt = task.get_prompt(HUMANEVAL)
        answer = "```python\ndef double(x):\n\treturn 2 * x\n```\nThat is all."
        program = task.postprocess_generation(f"{prompt}{answer}</s></s>", 0)
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # taken back by `place`
    assert prompt == humaneval_prompt(HUMANEVAL["prompt"])
    assert program == HUMANEVAL["prompt"] + humaneval_program(answer)
    assert task.process_results([[program]], [task.get_reference(HUMANEVAL)])["pass@1"] == 1
    assert harness.registry.TASK_REGISTRY["humaneval"] is own


def test_generations_of_this_merge_can_be_scored_later(
    launch: Launch, memorised: Memorised, folder: Path
) -> None:
    file, recipe = memorised.write_recipe(folder / "merge.yaml"), memorised.recipe()
    without = [word for word in COMMON if word not in ("--allow_code_execution",)]
    assert launch(file, *FIRST_SIX, "--generation_only", common=without) == 0
    assert not list(folder.glob("evaluation_results*"))
    path = f"generations_{identity.label(recipe)}_limit6_mbpp.json"
    assert launch(file, *FIRST_SIX, "--load_generations_path", path) == 0
    assert score(recipe, folder) == 0.5


def test_answers_of_another_merge_or_of_too_few_problems_are_refused(
    launch: Launch, memorised: Memorised, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, recipe = memorised.write_recipe(folder / "merge.yaml"), memorised.recipe()
    path = f"generations_{identity.label(recipe)}_mbpp.json"
    (folder / path).write_text(json.dumps([["pass"]] * 6))
    assert launch(file, "--load_generations_path", path) == 1
    assert "500 problems need 1 answers each; " in capsys.readouterr().err
    (folder / path).write_text(json.dumps([["pass"]] * 5 + [[]]))
    assert launch(file, *FIRST_SIX, "--load_generations_path", path) == 1
    assert f"{path} gave as many to 5. For fewer problems say --limit" in capsys.readouterr().err
    memorised.write_recipe(file, weight=-1.0)
    assert launch(file, *FIRST_SIX, "--load_generations_path", path) == 1
    assert "so it may hold another merge's answers" in capsys.readouterr().err
    assert not list(folder.glob("evaluation_results*"))


def test_an_interrupted_run_is_taken_up_by_its_own_merge_alone(
    launch: Launch, memorised: Memorised, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, recipe = memorised.write_recipe(folder / "merge.yaml"), memorised.recipe()
    begun = f"generations_{identity.label(recipe)}_limit6_mbpp_intermediate.json"
    (folder / begun).write_text(json.dumps([["def double(x): return 7"], *[[]] * 5]))
    taken_up = ["--load_generations_intermediate_paths", begun]
    assert launch(file, *FIRST_SIX, *taken_up) == 0
    assert answers(recipe, folder)[0] == ["def double(x): return 7"]
    assert score(recipe, folder) == pytest.approx(2 / 6)
    memorised.write_recipe(file, weight=-1.0)
    assert launch(file, *FIRST_SIX, *taken_up) == 1
    assert "is not named after" in capsys.readouterr().err
    assert launch("merge.yaml,merge.yaml", *FIRST_SIX, *taken_up) == 1
    assert "are the same merge; name it once" in capsys.readouterr().err


def test_a_part_of_the_problems_is_marked_in_every_name(
    launch: Launch, memorised: Memorised, folder: Path
) -> None:
    file, recipe = memorised.write_recipe(folder / "merge.yaml"), memorised.recipe()
    assert launch(file, "--limit", "2", "--limit_start", "1") == 0
    assert score(recipe, folder, "from1_limit2") == 1
    assert sorted(path.name for path in folder.glob("*.json")) == [
        f"evaluation_results_{identity.label(recipe)}_from1_limit2.json",
        f"generations_{identity.label(recipe)}_from1_limit2_mbpp.json",
    ]


def test_all_problems_have_no_mark(
    place: Path, launch: Launch, memorised: Memorised, folder: Path
) -> None:
    if place != STAND_IN:
        pytest.skip("the harness insists on 500 problems, which take minutes")
    data = folder / "mbpp" / "test.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:6]))
    assert launch(memorised.write_recipe(folder / "merge.yaml")) == 0
    assert score(memorised.recipe(), folder, "") == 0.5
    assert len(answers(memorised.recipe(), folder, "")) == 6


def test_two_processes_write_what_one_does(
    place: Path, launch: Launch, memorised: Memorised, folder: Path
) -> None:
    memorised.write_recipe(folder / "merge.yaml")
    five = ["--limit", "5"]  # no even share
    alone = ["--harness", str(place), "--model", "merge.yaml", *COMMON, *five]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    ours = ["-m", "harness_adapters.bigcode", "--save_generations_path", "two.json"]
    done = subprocess.run(
        [*command, *ours, *alone],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    label = identity.label(memorised.recipe())
    two = (folder / f"two_{label}_limit5_mbpp.json").read_bytes()
    assert score(memorised.recipe(), folder, "limit5") == pytest.approx(3 / 5)
    assert launch("merge.yaml", *five) == 0
    assert (folder / f"generations_{label}_limit5_mbpp.json").read_bytes() == two


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--revision", "main"], "--revision does not go with a merge: write org/name@revision"),
        (["--peft_model", "x"], "--peft_model does not go with a merge: write it in a recipe"),
        (["--use_auth_token"], "--use_auth_token does not go with a merge: log in, or set"),
        (["--load_in_8bit", "--load_in_4bit"], "--load_in_8bit and --load_in_4bit: keep one"),
        (["--check_references"], "use the harness's own main.py"),
        (["--precision", "fp8"], "--precision is fp32 or fp16 or bf16; got fp8"),
        (["--modeltype", "x"], "--modeltype is causal or seq2seq; got x"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_merge_is_refused(
    words: list[str], message: str, launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("merge.yaml", *words) == 1
    assert message in capsys.readouterr().err


def test_nothing_is_merged_where_it_could_not_be_scored(
    place: Path,
    launch: Launch,
    memorised: Memorised,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = memorised.write_recipe(folder / "merge.yaml")
    monkeypatch.setattr(bigcode, "load", lambda *given: pytest.fail("a model was loaded"))
    assert launch(file, common=["--tasks", "mbpp"]) == 1
    assert "Add --allow_code_execution, in a container" in capsys.readouterr().err
    assert launch("gone.yaml") == 1
    assert "no recipe file at gone.yaml" in capsys.readouterr().err
    asked = ["--allow_code_execution", "--prompt", "alpaca"]
    other = "words" if place == STAND_IN else "parity"
    assert launch(file, common=["--tasks", other, *asked]) == 1
    assert "--prompt alpaca is for humaneval and mbpp; got " in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Loading the dataset failed")
def test_data_that_is_not_there_is_named(
    launch: Launch, memorised: Memorised, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mbpp" / "test.jsonl").unlink()
    (folder / "mbpp").rmdir()
    assert launch(memorised.write_recipe(folder / "merge.yaml")) == 1
    assert f"in {folder} is read instead" in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bigcode.main(["--harness", str(folder), "--model", "merge.yaml"]) == 1
    assert "git clone https://github.com/bigcode-project" in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    before = sorted(folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        checkout.write(folder / "generations.json", [["pass"]])
    assert sorted(folder.iterdir()) == before
