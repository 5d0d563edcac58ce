"""alpaca_eval itself, with a merge in it and a judge on loopback that knows the right answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import Judge
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from harness_adapters import alpaca_eval as adapter
from merge_plugins import MergeError, Recipe, identity, save
from merge_plugins.demo import family
from merge_plugins.demo.skills import ALPACA, held_out
from merge_plugins.errors import UnknownMethodError

BEFORE, AFTER = ALPACA.split("{instruction}")
ROWS = [row for row in held_out("math", 20) if row.answer != row.slip][:8]
RIGHT, SLIPS = {row.answer for row in ROWS}, {row.slip for row in ROWS}


@pytest.fixture(scope="module")
def harness() -> Any:
    """The package, imported with the warning that its setuptools pin is about."""
    pytest.importorskip("openai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adapter._harness()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the data, a template, a recipe, and a config that names them."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "dataset": "demo",
            "instruction": row.prompt.removeprefix(BEFORE).removesuffix(AFTER),
            "output": row.slip,
            "generator": "sloppy",
        }
        for row in ROWS
    ]
    Path("rows.json").write_text(json.dumps(rows))
    Path("configs").mkdir()
    Path("configs/alpaca.txt").write_text(ALPACA)
    recipe()
    config()


def recipe(scale: float = 0.5, file: str = "configs/merge.yaml") -> str:
    """Write a recipe that solves the demo, or with a large scale nothing at all."""
    held = {
        "merge_method": "task_arithmetic",
        "base_model": str(family()["base"]),
        "models": [{"model": str(family()[name])} for name in ("math", "code", "sea")],
        "parameters": {"lambda": scale},
    }
    Path(file).write_text(yaml.safe_dump(held))
    return file


def config(**changes: Any) -> str:
    """Write a config of alpaca_eval for that recipe."""
    settings = {"model_name": "merge.yaml", "max_new_tokens": 24} | changes.pop("settings", {})
    held = {
        "prompt_template": "alpaca.txt",
        "fn_completions": "merged",
        "completions_kwargs": settings,
        **changes,
    }
    Path("configs/merged.yaml").write_text(yaml.safe_dump({"demo": held}))
    return "configs/merged.yaml"


def prefer_right(body: dict[str, Any]) -> dict[str, float]:
    """Prefer a right answer to a slip, and a slip to nonsense."""
    shown = re.findall(r'"output": """(.*?)"""', body["messages"][-1]["content"], re.DOTALL)
    first, second = ((text in RIGHT) + (text in RIGHT | SLIPS) for text in shown)
    return {"m": 0.0 if first > second else -40.0, "M": 0.0 if second > first else -40.0}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(prefer_right) as server:
        yield server


@pytest.fixture
def annotator(harness: Any, judge: Judge) -> str:
    """alpaca_eval's default judge, at our address; what it says is kept in this folder."""
    held = harness.constants.EVALUATORS_CONFIG_DIR / "weighted_alpaca_eval_gpt4_turbo/configs.yaml"
    configs = yaml.safe_load(held.read_text())
    Path("clients.yaml").write_text(f"default: [{{api_key: none, base_url: {judge.url}}}]")
    (settings,) = configs.values()
    settings["completions_kwargs"]["client_config_path"] = str(Path("clients.yaml").absolute())
    own = held.parent.parent / settings["prompt_template"]
    settings["prompt_template"] = str(own)
    Path("judge").mkdir()
    Path("judge/configs.yaml").write_text(yaml.safe_dump(configs))
    return str(Path("judge/configs.yaml").absolute())


@pytest.fixture
def win_rate(harness: Any, annotator: str) -> Callable[..., float]:
    """Run evaluate_from_model; return the model's win rate in percent."""

    def run(given: Any = "configs/merged.yaml", **options: Any) -> float:
        board, _ = adapter.evaluate_from_model(
            given,
            annotators_config=annotator,
            fn_metric="get_winrate",
            sort_by="win_rate",
            precomputed_leaderboard=None,
            is_return_instead_of_print=True,
            **{"evaluation_dataset": "rows.json", **options},
        )
        return float(board["win_rate"].iloc[0])

    return run


def written(folder: str = "results/*") -> list[dict[str, Any]]:
    (file,) = Path().glob(f"{folder}/model_outputs.json")
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def answers(rows: list[dict[str, Any]]) -> list[str]:
    return [row["output"] for row in rows]


def test_the_command_line_gives_a_full_win_rate_and_writes_only_here(
    harness: Any, judge: Judge
) -> None:
    installed = Path(harness.__file__).parent
    before = {file: file.stat().st_mtime_ns for file in installed.rglob("*.*[!c]")}
    Path("clients.yaml").write_text(f"default: [{{api_key: none, base_url: {judge.url}}}]")
    words = {
        "model_configs": "configs/merged.yaml",
        "evaluation_dataset": "rows.json",
        "annotators_config": "weighted_alpaca_eval_gpt4_turbo",
        "fn_metric": "get_winrate",
        "sort_by": "win_rate",
        "caching_path": "verdicts.json",
    }
    alone = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENAI_CLIENT_CONFIG_PATH": "clients.yaml",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "harness_adapters.alpaca_eval", "evaluate_from_model"),
            *(word for name, value in words.items() for word in (f"--{name}", value)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **alone},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    digest = identity.digest(Recipe.load("configs/merge.yaml"))
    assert re.search(rf"demo-{digest}-\w+ +100.00 ", done.stdout)
    assert answers(written()) == [row.answer for row in ROWS]
    assert len(json.loads(Path("verdicts.json").read_text())) == len(ROWS)
    after = {file: file.stat().st_mtime_ns for file in installed.rglob("*.*[!c]")}
    assert after == before


def test_a_wrecked_recipe_under_the_same_name_loses(win_rate: Callable[..., float]) -> None:
    assert win_rate() == 100
    recipe(scale=30.0)
    assert win_rate() == 0
    assert len(list(Path("results").iterdir())) == 2


def test_outputs_are_those_of_the_stock_decoder_on_a_mounted_recipe(
    harness: Any, win_rate: Callable[..., float]
) -> None:
    from merge_plugins.outputs.mount import mount

    assert win_rate() == 100
    held = Recipe.load("configs/merge.yaml")
    mount(held, "mounted")
    stock = {
        "prompt_template": str(Path("configs/alpaca.txt").absolute()),
        "fn_completions": "huggingface_local_completions",
        "completions_kwargs": {
            "model_name": str(Path("mounted").absolute()),
            "model_kwargs": {"trust_remote_code": True},
            "max_new_tokens": 24,
        },
    }
    assert win_rate({"stock": stock}) == 100  # no decoder of ours in there
    assert answers(written("results/stock")) == answers(written("results/demo-*"))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_outputs_are_those_of_its_pipeline_on_the_saved_merge(harness: Any, scale: float) -> None:
    """What alpaca_eval's own decoder does; itself, it loads no checkpoint on a CPU any more."""
    folder = save(Recipe.load(recipe(scale)), "saved")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [row.prompt for row in ROWS]
    stock = pipeline("text-generation", model=model, tokenizer=tokenizer)
    wanted = stock(prompts, return_full_text=False, do_sample=False, max_new_tokens=24)
    found = adapter.completions(prompts, "configs/merge.yaml", max_new_tokens=24)
    assert found["completions"] == [row[0]["generated_text"] for row in wanted]
    assert len(found["time_per_example"]) == len(found["price_per_example"]) == len(ROWS)


def test_the_merge_is_made_once_for_all_chunks(
    win_rate: Callable[..., float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert win_rate(chunksize=2) == 100
    assert len(written()) == len(ROWS)
    assert capsys.readouterr().err.count("merge-plugins: task_arithmetic of 3 models") == 1
    assert not adapter._generators


def test_outputs_of_another_merge_are_never_taken_up(win_rate: Callable[..., float]) -> None:
    assert win_rate(output_path="here") == 100
    first = written("here")
    assert win_rate(output_path="here") == 100  # its own are
    recipe(scale=30.0)
    with pytest.raises(MergeError, match=r"holds outputs of demo-\w+-\w+, not of demo-"):
        win_rate(output_path="here")
    assert written("here") == first


def test_a_name_tells_apart_all_that_changes_outputs(harness: Any) -> None:
    def name(**options: Any) -> str:
        (found,) = adapter.resolve("configs/merged.yaml", options)
        return found

    plain = name()
    config(settings={"batch_size": 4})
    assert name() == plain
    assert name(is_strip_output=False) != plain
    config(settings={"max_new_tokens": 25})
    assert name() != plain
    config()
    Path("configs/alpaca.txt").write_text(f"{ALPACA} ")
    assert name() != plain
    Path("configs/alpaca.txt").write_text(ALPACA)
    assert name() == plain
    recipe(scale=0.6)
    assert name() != plain


def test_a_plugin_in_a_file_is_named_beside_the_recipe(
    harness: Any, plugin_file: Callable[..., Path]
) -> None:
    file = plugin_file("return self.scale * slot.stacked().mean(dim=0)")
    shutil.copyfile(file, "configs/mean.py")
    models = [str(family()[name]) for name in ("math", "code")]
    Path("configs/merge.yaml").write_text(yaml.safe_dump({"merge_method": "own", "models": models}))
    with pytest.raises(UnknownMethodError):
        adapter.resolve(config(), {})
    ((_, found),) = adapter.resolve(config(settings={"plugin": "mean.py"}), {}).items()
    assert found["completions_kwargs"]["plugin"] == [str(Path("configs/mean.py").absolute())]


def test_a_reference_may_be_a_merge_too(win_rate: Callable[..., float]) -> None:
    wrecked = {
        "prompt_template": "configs/alpaca.txt",
        "fn_completions": "harness_adapters.alpaca_eval:completions",
        "completions_kwargs": {"model_name": recipe(30.0, "wrecked.yaml"), "max_new_tokens": 24},
    }
    assert win_rate(reference_model_configs={"wrecked": wrecked}) == 100


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fn_completions": "merge"}, "merge is no decoder; write merged"),
        ({"fn_completions": "os:system"}, "os:system is no decoder"),
        ({"prompt_template": "vicunia"}, "write vicuna, wizardlm-7b, or a file"),
        ({"prompt_template": None}, "prompt_template: None"),
        ({"completions_kwargs": {}}, "completions_kwargs: {model_name: RECIPE}"),
        ({"settings": {"model_name": "no.yaml"}}, "no recipe file at .*configs/no.yaml"),
    ],
)
def test_a_config_that_cannot_work_is_refused(
    harness: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(MergeError, match=said):
        adapter.resolve(config(**changes), {})


def test_other_decoders_are_left_to_alpaca_eval(harness: Any) -> None:
    file = config(fn_completions="openai_completions", prompt_template="gpt4/chatml_prompt.txt")
    assert adapter.resolve(file, {}) == yaml.safe_load(Path(file).read_text())
    with pytest.raises(MergeError, match=r"no config at nowhere\.yaml"):
        adapter.resolve("nowhere.yaml", {})
    Path("two.yaml").write_text("a: {}\nb: {}")
    with pytest.raises(MergeError, match="a config is one model"):
        adapter.resolve("two.yaml", {})


def test_the_seeds_prompts_are_theirs() -> None:
    texts = {name: file.read_text() for name, file in adapter.PROMPTS.items()}
    assert texts == {
        "vicuna": "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: {instruction} ASSISTANT:",
        "wizardlm-7b": "{instruction}\n\n### Response:\n",
    }


def outputs(*words: str) -> list[dict[str, Any]]:
    assert adapter.outputs(["configs/merge.yaml", "--out", "out.json", *words]) == 0
    return json.loads(Path("out.json").read_text())  # type: ignore[no-any-return]


def test_outputs_are_written_for_every_instruction_and_named_by_digest(harness: Any) -> None:
    words = ("--instructions", "rows.json", "--max-new-tokens", "24")
    rows = outputs(*words, "--prompt", "configs/alpaca.txt")
    digest = identity.digest(Recipe.load("configs/merge.yaml"))
    instructions = [row["instruction"] for row in json.loads(Path("rows.json").read_text())]
    assert rows == [
        {
            "dataset": "demo",
            "instruction": instruction,
            "output": row.answer,
            "generator": f"task_arithmetic-{digest}",
        }
        for row, instruction in zip(ROWS, instructions, strict=True)
    ]
    with pytest.raises(MergeError, match=r"out\.json exists"):
        outputs(*words)
    Path("out.json").unlink()
    some = outputs(*words, "--prompt", "wizardlm-7b", "--limit", "2", "--name", "mine")
    assert [row["generator"] for row in some] == [f"mine-{digest}"] * 2


def test_outputs_are_complete_or_not_there(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(Path("rows.json").read_text())
    Path("long.json").write_text(json.dumps([*rows, {"instruction": "why? " * 200}]))
    words = ("--prompt", "configs/alpaca.txt", "--max-new-tokens", "24", "--instructions")
    with pytest.raises(MergeError, match="prompt 8 has"):
        outputs(*words, "long.json")
    for held, said in (("[]", "not an empty one"), ("[1]", "row 0 has no text"), ("{", "Expect")):
        Path("bad.json").write_text(held)
        with pytest.raises(MergeError, match=said):
            outputs(*words, "bad.json")
    Path("plain.txt").write_text("no place for one")
    with pytest.raises(MergeError, match=r"has no \{instruction}"):
        outputs("--prompt", "plain.txt", "--instructions", "rows.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MergeError, match=r"the hub did not give alpaca_eval\.json"):
        outputs()
    assert not [file for file in Path().iterdir() if "out.json" in file.name]


def on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, content: str) -> None:
    """Put a file of alpaca_eval's data set into a hub cache of our own."""
    folder = Path("hub/datasets--tatsu-lab--alpaca_eval")
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / ("0" * 40) / name).write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))


def test_without_instructions_all_of_alpaca_evals_are_answered(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": "Hi"}] * 805
    words = ("--prompt", "wizardlm-7b", "--max-new-tokens", "1", "--batch-size", "161")
    on_the_hub(monkeypatch, "alpaca_eval.json", json.dumps(rows[1:]))
    with pytest.raises(MergeError, match="805 instructions; the hub gave 804"):
        outputs(*words)
    on_the_hub(monkeypatch, "alpaca_eval.json", json.dumps(rows))
    assert len(outputs(*words)) == 805


def test_without_a_data_set_the_references_are_gpt4s(
    win_rate: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_hub(monkeypatch, "alpaca_eval_gpt4_baseline.json", Path("rows.json").read_text())
    Path("rows.json").unlink()
    assert win_rate(evaluation_dataset=None) == 100
