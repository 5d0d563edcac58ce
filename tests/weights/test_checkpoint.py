"""A model on disk is a lazy mapping; whatever is wrong with its files is said before it is read."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_plugins.errors import CheckpointError
from merge_plugins.weights import open_checkpoint
from merge_plugins.weights.files import read_json, tokenizer_files

WEIGHTS = {
    "model.embed_tokens.weight": torch.arange(12.0).view(4, 3),
    "model.norm.weight": torch.tensor([1.0, 2.0, 3.0]).bfloat16(),
    "steps": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights."""
    (tmp_path / "config.json").write_text('{"model_type": "tiny"}')
    return tmp_path


def shards(folder: Path, *parts: Mapping[str, Tensor], suffix: str = "safetensors") -> Path:
    """Write one file per part, and the index that says which tensor is where."""
    weight_map = {}
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05}-of-{len(parts):05}.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(dict(part), folder / name)
        weight_map |= dict.fromkeys(part, name)
    start = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{start}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def halves() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    items = list(WEIGHTS.items())
    return dict(items[:2]), dict(items[2:])


WRITERS: dict[str, Callable[[Path], object]] = {
    "one safetensors file": lambda f: save_file(WEIGHTS, f / "model.safetensors"),
    "a file of another name": lambda f: save_file(WEIGHTS, f / "consolidated.safetensors"),
    "sharded safetensors": lambda f: shards(f, *halves()),
    "one .bin": lambda f: torch.save(WEIGHTS, f / "pytorch_model.bin"),
    "an old .bin": lambda f: torch.save(
        WEIGHTS, f / "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
    "sharded .bin": lambda f: shards(f, *halves(), suffix="bin"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_layout_gives_the_same_tensors(write: Callable[[Path], object], folder: Path) -> None:
    write(folder)
    found = open_checkpoint(str(folder))
    assert found.keys() == WEIGHTS.keys()
    for name, stored in found.items():
        assert (stored.name, stored.dtype, stored.shape) == (
            name,
            WEIGHTS[name].dtype,
            tuple(WEIGHTS[name].shape),
        )
        assert torch.equal(stored.view(), WEIGHTS[name])
        stored.release()
        stored.release(1, 2)
        assert torch.equal(stored.view(), WEIGHTS[name])


def test_safetensors_win_over_a_bin_beside_them_as_in_transformers(folder: Path) -> None:
    save_file(WEIGHTS, folder / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, folder / "pytorch_model.bin")
    save_file({"lora": torch.zeros(1)}, folder / "adapter_model.safetensors")
    assert open_checkpoint(str(folder)).keys() == WEIGHTS.keys()


def test_tensors_that_are_not_aligned_are_read_all_the_same(folder: Path) -> None:
    # the format does not promise alignment: write an odd number of bytes first
    values = {"a": b"\x01", "b": struct.pack("<2f", 1.5, -2.5)}
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    write_raw(folder / "model.safetensors", header, b"".join(values.values()))
    assert open_checkpoint(str(folder))["b"].view().tolist() == [1.5, -2.5]


def test_a_shard_may_hold_a_tensor_that_the_index_assigns_elsewhere(folder: Path) -> None:
    index = shards(folder, {"a": torch.ones(2)}, {"b": torch.ones(2)})
    save_file(
        {"a": torch.zeros(2), "b": torch.ones(2)}, folder / "model-00002-of-00002.safetensors"
    )
    assert index.is_file()
    assert open_checkpoint(str(folder))["a"].view().tolist() == [1, 1]


def write_raw(file: Path, header: Mapping[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(WEIGHTS, file)
    os.truncate(file, file.stat().st_size - 4)


def misfit(folder: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    write_raw(folder / "model.safetensors", header, bytes(8))


def unknown_dtype(folder: Path) -> None:
    header = {"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    write_raw(folder / "model.safetensors", header, bytes(2))


def without_a_shard(folder: Path) -> None:
    shards(folder, *halves())
    (folder / "model-00002-of-00002.safetensors").unlink()


def indexed(folder: Path, file: object) -> None:
    """Write an index that says that a tensor is in that file."""
    index = {"metadata": {}, "weight_map": {"w": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_an_absent_tensor(folder: Path) -> None:
    index = shards(folder, *halves())
    held = json.loads(index.read_text())
    held["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(held))


def twice(folder: Path) -> None:
    save_file(WEIGHTS, folder / "a.safetensors")
    save_file(WEIGHTS, folder / "b.safetensors")


def pickled_code(folder: Path) -> None:
    torch.save({"w": torch.zeros(1), "path": Path()}, folder / "pytorch_model.bin")


def larger_than_its_record(folder: Path) -> None:
    """Ask for more elements than were stored; torch reads on in the file where it is mapped."""
    torch.save({"w": torch.arange(1000.0)}, folder / "whole.bin")
    with (
        zipfile.ZipFile(folder / "whole.bin") as whole,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w") as changed,
    ):
        for record in whole.infolist():
            raw = whole.read(record)
            if record.filename.endswith("data.pkl"):  # numel and shape, as pickle's BININT2
                assert raw.count(b"M\xe8\x03") == 2
                raw = raw.replace(b"M\xe8\x03", b"M\x10\x04")
            changed.writestr(record.filename, raw)


def half_a_bin(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(WEIGHTS, file)
    os.truncate(file, file.stat().st_size // 2)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: None, r"has no weights: no \*.safetensors, no pytorch_model.bin"),
    "truncated": (
        truncated,
        "model.safetensors is not a whole safetensors file: .*Download it again",
    ),
    "empty file": (
        lambda f: (f / "model.safetensors").touch(),
        "model.safetensors is not a whole safetensors file: .*Download it again",
    ),
    "no header": (
        lambda f: (f / "model.safetensors").write_bytes(b"<html>not found</html>"),
        "model.safetensors is not a whole safetensors file",
    ),
    "no JSON": (
        lambda f: (f / "model.safetensors").write_bytes(
            b"\x08" + bytes(7) + b"{,,,,,,}" + bytes(9)
        ),
        "model.safetensors is not a whole safetensors file",
    ),
    "a header of another kind": (
        lambda f: write_raw(f / "model.safetensors", {"w": {"dtype": "F32"}}, bytes(8)),
        "model.safetensors is not a whole safetensors file",
    ),
    "sizes that disagree": (misfit, "model.safetensors is not a whole safetensors file"),
    "unknown dtype": (unknown_dtype, "model.safetensors: w has dtype F4, which we cannot merge"),
    "missing shard": (
        without_a_shard,
        "shard model-00002-of-00002.safetensors is missing. Download the model again",
    ),
    "absent tensor": (
        with_an_absent_tensor,
        "1 tensors are in the index but in no file, first lm_head.weight "
        r"\(expected in model-00001-of-00002.safetensors\)",
    ),
    "index of another kind": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "model.safetensors.index.json",
    ),
    "index that names a file elsewhere": (
        lambda f: indexed(f, "../model.safetensors"),
        "model.safetensors.index.json: w is in '../model.safetensors', which is no file beside",
    ),
    "index that names a file anywhere": (
        lambda f: indexed(f, "/etc/passwd"),
        "w is in '/etc/passwd', which is no file beside the index",
    ),
    "index that names no file": (
        lambda f: indexed(f, 7),
        "w is in 7, which is no file beside the index",
    ),
    "index that names what can be no file": (
        lambda f: indexed(f, "\ud800" * 300),
        "which is no file beside the index",
    ),
    "index too deep": (
        lambda f: (f / "model.safetensors.index.json").write_text("[" * 100_000),
        "model.safetensors.index.json is not readable JSON",
    ),
    "index that is no JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        "model.safetensors.index.json is not readable JSON",
    ),
    "a tensor twice": (twice, "is both in a.safetensors and in b.safetensors"),
    "a pickle that could run code": (
        pickled_code,
        "pytorch_model.bin is damaged or a pickle of more than plain tensors, which could run code"
        ".*Use a safetensors version",
    ),
    "a pickle whose keys are numbers": (
        lambda f: torch.save({7: torch.zeros(1)}, f / "pytorch_model.bin"),
        "pytorch_model.bin has the key 7, which is no tensor's name",
    ),
    "a pickle of complex numbers": (
        lambda f: torch.save({"w": torch.zeros(1, dtype=torch.cfloat)}, f / "pytorch_model.bin"),
        "pytorch_model.bin: w has dtype complex64, which we cannot merge",
    ),
    "a pickle of a sparse tensor": (
        lambda f: torch.save({"w": torch.eye(2).to_sparse()}, f / "pytorch_model.bin"),
        "pytorch_model.bin: w is a torch.sparse_coo tensor on cpu, not a plain one",
    ),
    "a pickle that asks for more than it holds": (
        larger_than_its_record,
        "pytorch_model.bin: w is not what the file holds",
    ),
    "half a pickle": (half_a_bin, "pytorch_model.bin is damaged or a pickle of more"),
    "a text named .bin": (
        lambda f: (f / "pytorch_model.bin").write_text("version https://git-lfs"),
        "pytorch_model.bin is damaged or a pickle of more",
    ),
    "a nested pickle": (
        lambda f: torch.save({"model": {"w": torch.zeros(1)}}, f / "pytorch_model.bin"),
        "pytorch_model.bin: model is a dict, not a tensor",
    ),
    "a pickle of a list": (
        lambda f: torch.save([torch.zeros(1)], f / "pytorch_model.bin"),
        "pytorch_model.bin holds a list, not tensors by name",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_with_its_file(
    damage: Callable[[Path], object], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as caught:
        open_checkpoint(str(folder))
    assert str(folder) in str(caught.value)


def test_a_lora_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    save_file({"lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"not a model\. .* too: org/base\+/"):
        open_checkpoint(str(tmp_path))


def test_a_quantised_model_is_refused(checkpoint: Callable[..., str]) -> None:
    ref = checkpoint(WEIGHTS, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=rf"{re.escape(ref)} is quantised \(quantization_c"):
        open_checkpoint(ref)


def test_weights_without_a_config_are_no_model(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no config\.json; is it a model folder"):
        open_checkpoint(str(tmp_path))


def test_a_file_of_tensors_has_no_config(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    save_file({"w": torch.ones(2)}, file)
    found = open_checkpoint(str(file))
    assert (list(found), found.config) == (["w"], {})
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        open_checkpoint(str(file))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not readable JSON"), ("[]", "expected a JSON object, got list")]
)
def test_a_broken_json_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(file))}.*{message}"):
        read_json(file)


def test_a_tokenizer_is_all_of_its_files(tmp_path: Path) -> None:
    names = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model"}
    names |= {"special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}
    for name in (*names, "config.json", "model.safetensors", "README.md"):
        (tmp_path / name).touch()
    assert {file.name for file in tokenizer_files(tmp_path)} == names


def test_a_json_file_of_a_gigabyte_is_refused_before_it_fills_the_memory(
    checkpoint: Callable[..., str],
) -> None:
    folder = Path(checkpoint({"w": torch.ones(1)}))
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match=r"config\.json has more than 256 MiB"):
        open_checkpoint(str(folder))
