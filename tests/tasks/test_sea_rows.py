"""Sailor's rows, from its files or from the hub, and `merge-plugins sea-data`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import sea_rows
from datasets import Dataset

from harness_adapters.commands import sea_data
from harness_adapters.tasks.local_data import VARIABLE
from harness_adapters.tasks.sea import rows as sea
from harness_adapters.tasks.sea.suite import SUITE
from merge_plugins.cli import main
from merge_plugins.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Our rows in Sailor's files."""
    monkeypatch.setenv(VARIABLE, str(sea_rows.write(tmp_path)))
    return tmp_path


@pytest.fixture
def sailor(tmp_path, monkeypatch):
    """A checkout of Sailor's repository with our rows, and their checksums."""
    checkout = tmp_path / "sailor-llm"
    sea_rows.write(tmp_path)
    shutil.copytree(tmp_path / "sea", checkout / "eval" / "data")
    shutil.rmtree(tmp_path / "sea")
    files = {
        name: sea_data.File(len(rows), hashlib.sha256(_bytes(checkout, name)).hexdigest())
        for name, rows in sea_rows.FILES.items()
    }
    monkeypatch.setattr(sea_data, "FILES", files)
    return checkout


def _bytes(checkout: Path, name: str) -> bytes:
    return (checkout / "eval" / "data" / name).read_bytes()


def test_files_are_those_of_the_suite():
    whole = {file for file in sea_data.FILES if "thai-questions-test.json" not in file}
    assert {config.file for config in SUITE} == {*whole, "m3exam/thai-questions-test.json"}
    assert sea_rows.FILES.keys() == sea_data.FILES.keys()
    assert len(SUITE) == 19


def test_exams_are_repaired_as_sailor_repairs_them(written):
    first, second = sea.rows("m3exam/vietnamese-questions-test-4.json")
    assert first["answer_text"] == "B"
    assert first["full_options"].split("\n")[1] == "B. xanh"
    assert second["options_0"] == " đỏ"  # what "A . đỏ" leaves
    assert second["options_1"] == "xanh"
    thai = sea.rows("m3exam/thai-questions-test.json")
    assert [row["answer"] for row in thai] == ["2", "1", "2", "1"]
    assert [thai[2][f"options_{i}"] for i in range(5)] == ["แดง", "เขียว", "ขาว", "ดำ", ""]
    javanese = sea.rows("m3exam/javanese-questions-test.json")
    assert javanese[0]["full_options"] == "A. abang\nB. biru\nC. ijo\nD.  ireng"
    assert javanese[0]["question_text"] == "Langit iku wernane"
    assert [row["answer_text"] for row in javanese] == ["B", "C"]


def test_causes_are_named_in_their_language(written):
    (effect, cause) = sea.rows("xcopa/id_test.jsonl")
    assert (effect["question"], effect["answer"]) == ("memengaruhi", "0")
    assert (cause["question"], cause["answer"]) == ("menyebabkan", "1")
    assert sea.rows("xcopa/th_test.jsonl")[0]["question"] == "ผล"


def test_m3exam_has_to_be_prepared(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"merge-plugins sea-data DIR.*export MERGE_PLUGINS_DATA"):
        sea.rows("m3exam/thai-questions-test.json")


def test_a_file_that_is_not_there_is_named(written):
    (written / "sea" / "xcopa" / "id_test.jsonl").unlink()
    with pytest.raises(DataError, match=r"no sea/xcopa/id_test\.jsonl"):
        sea.rows("xcopa/id_test.jsonl")


# The hub


def test_rows_of_the_hub_become_sailors():
    hub = sea.Hub("google/xquad", "main", "validation", "xquad.th", (range(1, 3),))
    given = [
        {"id": "", "context": f"\ufeffข้อ {n}", "question": "?", "answers": {"text": ["ก", "ข"]}}
        for n in range(4)
    ]
    found = sea.read("xquad/xquad_th.json", sea.as_sailor_has_them(hub, given))
    assert [row["context"] for row in found] == ["ข้อ 0", "ข้อ 3"]
    assert found[0]["answer"] == "ก"
    hub = sea.HUB["tydiqa_id/validation.jsonl"]
    given = [
        {"id": f"{name}-1", "context": name, "question": "?", "answers": {"text": ["a", "b"]}}
        for name in ("arabic", "indonesian")
    ]
    (row,) = sea.read("tydiqa_id/validation.jsonl", sea.as_sailor_has_them(hub, given))
    assert row == {"context": "indonesian", "question": "?", "answer": ["a", "b"]}


def test_the_hub_is_asked_for_one_revision_and_its_rows_are_checked(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    asked = []

    def hub(dataset, config, split, revision):
        asked.append((dataset, config, split, revision))
        return Dataset.from_list(sea_rows.CAUSES[:1] * 500)

    monkeypatch.setattr("datasets.load_dataset", hub)
    with pytest.warns(UserWarning, match=r"cambridgeltl/xcopa has changed.*sea-data"):
        assert len(sea.rows("xcopa/th_test.jsonl")) == 500
    assert asked == [("cambridgeltl/xcopa", "th", "test", asked[0][3])]
    assert len(asked[0][3]) == 40
    with pytest.raises(DataError, match=r"500 rows of belebele/ind_Latn\.jsonl, Sailor scored 900"):
        sea.scored("belebele/ind_Latn.jsonl", [{}] * 500)


@pytest.mark.skipif(not SHARED.is_dir(), reason="Sailor's files are not beside this checkout")
def test_rows_are_the_ones_that_sailor_scored(monkeypatch):
    sea_data.verify(SHARED / "sea")
    monkeypatch.setenv(VARIABLE, str(SHARED))
    for file, wanted in sea_data.FILES.items():
        found = sea.rows(file)
        assert len(found) == wanted.n_rows
        if file in sea.HUB:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert sea.scored(file, found) is found


# merge-plugins sea-data


def test_sea_data_copies_a_checkout_and_says_what_to_export(sailor, tmp_path, capsys):
    target = tmp_path / "data"
    assert main(["sea-data", str(target), "--from", str(sailor)]) == 0
    said = capsys.readouterr().out
    assert f"{len(sea_data.FILES)} files" in said
    assert f"export {VARIABLE}={target}" in said
    for name in sea_data.FILES:
        assert (target / "sea" / name).read_bytes() == _bytes(sailor, name)
    assert [path.name for path in target.iterdir()] == ["sea"]
    assert main(["sea-data", str(target)]) == 0  # nothing to do, and no network asked
    assert "is complete" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_sea_data_is_complete_or_nothing(harm, sailor, tmp_path, capsys):
    file = sailor / "eval" / "data" / "m3exam" / "vietnamese-questions-test-4.json"
    file.unlink() if harm == "missing" else file.write_text("[]")
    target = tmp_path / "data"
    assert main(["sea-data", str(target), "--from", str(sailor)]) == 1
    assert "vietnamese-questions-test-4.json" in capsys.readouterr().err
    assert not list(target.iterdir())


def test_sea_data_refuses_what_is_no_checkout(tmp_path, capsys):
    assert main(["sea-data", str(tmp_path / "data"), "--from", str(tmp_path)]) == 1
    assert "git clone https://github.com/sail-sg/sailor-llm" in capsys.readouterr().err


@pytest.fixture
def one_set_on_the_hub(monkeypatch):
    """A hub with one data set, whose checksum is known; returns its rows."""
    name, hub_rows = "xcopa/th_test.jsonl", [*sea_rows.CAUSES]
    content = sea.fingerprint(sea.read(name, hub_rows))
    monkeypatch.setattr(sea, "HUB", {name: sea.HUB[name]._replace(content=content)})
    monkeypatch.setattr(sea_data, "FILES", {name: sea_data.File(len(hub_rows), "")})
    monkeypatch.setattr(sea, "FILES", sea_data.FILES)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Dataset.from_list(hub_rows))
    return hub_rows


def test_sea_data_of_the_hub_is_read_as_sailors(one_set_on_the_hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "elsewhere"))  # the hub is asked all the same
    assert main(["sea-data", str(tmp_path / "data"), "--hub"]) == 0
    assert "1 files of 1 (M3Exam is not on the hub)" in capsys.readouterr().out
    monkeypatch.setenv(VARIABLE, str(tmp_path / "data"))
    name = "xcopa/th_test.jsonl"
    assert sea.rows(name) == sea.read(name, one_set_on_the_hub)
    with pytest.raises(DataError, match=r"no sea/m3exam/thai-questions-test\.json"):
        sea.rows("m3exam/thai-questions-test.json")
    assert main(["sea-data", str(tmp_path / "data"), "--hub"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_sea_data_of_a_hub_that_changed_is_nothing(one_set_on_the_hub, tmp_path, capsys):
    one_set_on_the_hub[0] = one_set_on_the_hub[0] | {"premise": "another"}
    assert main(["sea-data", str(tmp_path / "data"), "--hub"]) == 1
    assert "not all among the" in capsys.readouterr().err
    assert not list((tmp_path / "data").iterdir())


def test_sea_data_clones_the_repository_itself(sailor, tmp_path, monkeypatch, capsys):
    def git(*words: str) -> None:
        author = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", *author, "-C", sailor, *words], check=True, capture_output=True)

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=x")
    monkeypatch.setattr(sea_data, "REPOSITORY", sailor.as_uri())
    assert main(["sea-data", str(tmp_path / "data")]) == 0
    assert "checksums verified" in capsys.readouterr().out
    monkeypatch.setattr(sea_data, "REPOSITORY", (tmp_path / "nowhere").as_uri())
    assert main(["sea-data", str(tmp_path / "more")]) == 1
    assert "--from CHECKOUT" in capsys.readouterr().err


def test_a_folder_that_was_changed_is_not_trusted(sailor, tmp_path, capsys):
    target = tmp_path / "data"
    assert main(["sea-data", str(target), "--from", str(sailor)]) == 0
    with (target / "sea" / "xquad" / "xquad_th.json").open("a") as file:
        file.write("\n")
    assert main(["sea-data", str(target), "--from", str(sailor)]) == 1
    assert "SHA-256" in capsys.readouterr().err
