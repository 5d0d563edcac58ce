"""A saved merge goes to the hub whole, over no other model, and says what it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from loopback_hub import READ_TOKEN, TOKEN, hub_of

from merge_plugins import MergeError, Recipe, identity, load_plugin, mount, push, save
from merge_plugins.cli import main
from merge_plugins.outputs.scores import Score

# Uploads without Xet: huggingface_hub 2.4 calls its own client in a way that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
Spell = Callable[..., Recipe]
MEDIAN = "return self.scale * slot.stacked().median(dim=0).values"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a hub that we are logged in to."""
    root = tmp_path / "hub"
    root.mkdir()
    with hub_of(root) as endpoint:
        monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield root


@pytest.fixture
def saved(winner: Recipe, tmp_path: Path) -> Path:
    return save(winner, tmp_path / "saved", max_shard_size=20_000)


def files(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_all_files_arrive_in_one_commit(hub: Path, saved: Path, winner: Recipe) -> None:
    address = push(saved, "me/winner")
    assert address == f"{hub_constants.ENDPOINT}/me/winner"
    there, here = files(hub / "me" / "winner"), files(saved)
    assert there.keys() - {".gitattributes"} == here.keys()
    assert sum(name.endswith(".safetensors") for name in there) > 1
    changed = {name for name in here if here[name] != there[name]}
    assert changed == {"README.md", "merge.yaml"}
    assert HfApi().model_info("me/winner").private is False
    card = ModelCard(there["README.md"].decode())
    assert card.text.startswith("\n# me/winner\n")
    assert 'from_pretrained("me/winner", dtype="auto")' in card.text
    assert identity.digest(winner) in card.text


def test_nothing_of_this_machine_is_published(hub: Path, saved: Path) -> None:
    (saved / ".cache").mkdir()
    (saved / ".cache" / "notes").write_text("mine")
    push(saved, "lab/winner", private=True)
    there = files(hub / "lab" / "winner")
    assert HfApi().model_info("lab/winner").private is True
    assert ".cache/notes" not in there
    recipe = yaml.safe_load(there["merge.yaml"])
    assert recipe["base_model"] == "base"
    assert [model["model"] for model in recipe["models"]] == ["math", "code"]
    assert b"../" not in there["merge.yaml"] + there["README.md"]


def test_another_model_is_not_overwritten(hub: Path, saved: Path) -> None:
    theirs = hub / "me" / "winner"
    theirs.mkdir(parents=True)
    (theirs / "model-00009-of-00009.safetensors").write_bytes(b"weights")
    (theirs / "README.md").write_text("---\nlicense: mit\n---\n# Theirs")
    before = files(theirs)
    with pytest.raises(MergeError, match=r"me/winner is there already, with 2 files of ano"):
        push(saved, "me/winner")
    assert files(theirs) == before
    push(saved, "me/winner", overwrite=True)
    assert files(theirs).keys() == files(saved).keys()


def test_the_same_merge_is_pushed_again(hub: Path, saved: Path, winner: Recipe) -> None:
    for _ in range(2):
        push(saved, "me/winner")
    results = saved.parent / "results"
    results.mkdir()
    (results / "results_1.json").write_text(json.dumps(scored(winner)))
    push(saved, "me/winner", results=[results])
    card = ModelCard((hub / "me" / "winner" / "README.md").read_text())
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_value) == ("gsm8k", 0.75)
    again = "| gsm8k | exact_match,strict | 0.75 | 0.0120 | lm-eval, 5-shot |"
    assert card.text.count("## Scores") == card.text.count(again) == 1
    push(saved, "me/winner", results=[results])
    assert (hub / "me" / "winner" / "README.md").read_text().count("## Scores") == 1


def scored(recipe: Recipe) -> dict[str, Any]:
    """What lm-eval writes of a merge, as far as it is read."""
    return {
        "results": {"gsm8k": {"exact_match,strict": 0.75, "exact_match_stderr,strict": 0.012}},
        "config": {"model": "merged", "merge": {"recipe": recipe.as_dict()}},
        "model_name": identity.label(recipe),
        "group_subtasks": {},
        "versions": {"gsm8k": 3},
        "n-shot": {"gsm8k": 5},
    }


def test_an_empty_repository_is_filled(hub: Path, saved: Path) -> None:
    HfApi().create_repo("me/winner", private=True)
    push(saved, "me/winner")
    assert files(saved).keys() < files(hub / "me" / "winner").keys()
    assert HfApi().model_info("me/winner").private is True


def test_a_public_model_does_not_become_private(hub: Path, saved: Path) -> None:
    push(saved, "me/winner")
    with pytest.raises(MergeError, match="is there already, and public; make it private on"):
        push(saved, "me/winner", private=True)


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("winner", TOKEN, "'winner': write the owner too, as in org/name"),
        ("me/win ner", TOKEN, "'me/win ner' is no name on the hub"),
        ("you/winner", TOKEN, r"me is no member of you; there are me, lab, club"),
        ("club/winner", TOKEN, "me may only read in club"),
        ("me/winner", READ_TOKEN, "the token of me may only read; log in with 'hf auth login'"),
        ("me/winner", "hf_wrong", "the hub did not say who is logged in: Invalid user token"),
    ],
)
def test_what_cannot_be_written_is_refused(
    repo: str, token: str, message: str, hub: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MergeError, match=message):
        push(saved, repo)
    assert not files(hub)


def test_nobody_is_logged_in(
    hub: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(MergeError, match="nobody is logged in to the hub; log in with"):
        push(saved, "me/winner")


def test_a_hub_that_does_not_answer_is_an_error(
    hub: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MergeError, match="the hub did not say who is logged in: "):
        push(saved, "me/winner")


def test_what_save_did_not_write_is_refused(hub: Path, winner: Recipe, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="holds no merge that was saved"):
        push(tmp_path, "me/winner")
    with pytest.raises(MergeError, match="holds no weights; save the merge"):
        push(mount(winner, tmp_path / "mounted"), "me/winner")


def licensed(model: str, copy: Path, front: str) -> str:
    """Copy a model, with a card."""
    shutil.copytree(model, copy)
    (copy / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    return str(copy)


def test_the_card_is_the_hubs(llamas: Mapping[str, str], recipe: Spell, tmp_path: Path) -> None:
    math = licensed(llamas["math"], tmp_path / "math", "license: llama3")
    winner = recipe("ties", llamas["base"], [math, llamas["code"]], weight=1)
    scores = [Score("gsm8k", "exact_match,strict-match", 0.5, 0.01, "5-shot", "lm-eval")]
    folder = save(winner, tmp_path / "saved", name="me/winner", scores=scores)
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert {"merge", "merge-plugins", "ties"} == {*data["tags"]}
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["license"] == "unknown"  # the others state none
    assert "| math | llama3 |\n| code | none stated |" in card.text
    assert "The most restrictive that is stated is llama3." in card.text
    assert "The terms of base, code are unknown, and so are the merge's." in card.text
    ((index,), (result,)) = data["model-index"], card.data.eval_results
    assert index["name"] == "winner"
    assert (result.metric_type, result.metric_value) == ("exact_match", 0.5)
    code = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(code.replace("me/winner", str(folder)), names)
    assert names["model"].num_parameters()


def test_a_parents_license_is_the_merges(
    llamas: Mapping[str, str], recipe: Spell, tmp_path: Path
) -> None:
    front = "license: other\nlicense_name: mine\nlicense_link: L"
    spelled = recipe("average_merging", None, [licensed(llamas["math"], tmp_path / "m", front)])
    data = ModelCard.load(save(spelled, tmp_path / "saved") / "README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "L")


PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"


def test_the_commands_of_the_page_publish_a_merge(
    hub: Path,
    winner: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RECIPE").write_text(winner.to_yaml())
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results_1.json").write_text(json.dumps(scored(winner)))
    (block,) = re.findall(r"^```bash\n(.*?)```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in block.replace("org/name", "lab/name").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert (program, main(words)) == ("merge-plugins", 0)
    said = capsys.readouterr().out.splitlines()
    address = f"{hub_constants.ENDPOINT}/lab/name"
    first, folder, *rest = said
    assert first.endswith(f" GB will be uploaded to {address} (public, new)")
    assert folder == str(tmp_path / "DIR")
    assert rest[0] == rest[2] == address
    assert rest[1].endswith(f" GB will be uploaded to {address} (public)")
    assert "## Scores" in (hub / "lab" / "name" / "README.md").read_text()


@pytest.mark.parametrize("flag", ["--private", "--overwrite"])
def test_flags_of_an_upload_need_one(
    flag: str, winner: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "merge.yaml").write_text(winner.to_yaml())
    assert main(["save", str(tmp_path / "merge.yaml"), str(tmp_path / "out"), flag]) == 1
    assert f"{flag} goes with --push org/name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_asks_the_hub_that_the_environment_names(
    hub: Path, llamas: Mapping[str, str], tmp_path: Path, plugin_file: Callable[..., Path]
) -> None:
    load_plugin(plugin_file(MEDIAN))
    models = [llamas["math"], llamas["code"]]
    save(Recipe.from_mapping({"merge_method": "own", "models": models}), tmp_path / "out")
    endpoint = hub_constants.ENDPOINT
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "",
    }
    command = [sys.executable, "-m", "merge_plugins", "push", "out", "lab/own", "--private"]
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert not run.returncode, run.stderr
    said, address = run.stdout.splitlines()
    assert said.endswith(f" GB will be uploaded to {endpoint}/lab/own (private, new)")
    assert address == f"{endpoint}/lab/own"
    assert "own.py, whose SHA-256 begins with" in (hub / "lab" / "own" / "README.md").read_text()
    assert (hub / "lab" / "own" / "model.safetensors").stat().st_size > 1000
