"""Open a model on disk as a lazy mapping from tensor name to stored tensor; reads only headers.

Safetensors files (one or sharded) are read through `mmap` by `merge_plugins.weights.stored`:
tensors are zero-copy views whose pages are released as soon as a block is merged, so that memory
does not grow with the size of the models. ``.bin`` files are read by torch with
``weights_only=True``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from merge_plugins.errors import CheckpointError
from merge_plugins.weights.files import index_file, read_json, weight_files, weight_map
from merge_plugins.weights.headers import read_header
from merge_plugins.weights.modules import weight_files_below
from merge_plugins.weights.stored import StoredTensor


class Checkpoint(Mapping[str, StoredTensor]):
    """Map the tensor names of a model folder, in file order, to its tensors.

    The path may also be one file of tensors, a state dict without a config.
    """

    def __init__(self, ref: str, path: Path) -> None:
        self.ref, self.path = ref, path
        self.files = weight_files(path)
        wanted = self._index()
        self._tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for name, tensor in read_header(file).items():
                if wanted and wanted.get(name) != file.name:
                    continue  # a shard may hold tensors its index assigns elsewhere
                if name in self._tensors:
                    other = self._tensors[name].file.name
                    raise CheckpointError(f"{path}: {name} is both in {other} and in {file.name}")
                self._tensors[name] = tensor
        self._tensors |= module_tensors(path)
        missing = [name for name in wanted if name not in self._tensors]
        if missing:
            raise CheckpointError(
                f"{path}: {len(missing)} tensors are in the index but in no file, first "
                f"{missing[0]} (expected in {wanted[missing[0]]}). Download the model again."
            )

    def _index(self) -> dict[str, str]:
        index = index_file(self.path)
        return weight_map(index) if index else {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The contents of ``config.json``; empty for a file of tensors."""
        if self.path.is_file():
            return {}
        file = self.path / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{self.path} has no config.json; is it a model folder?")
        return read_json(file)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def module_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Open the weights of a sentence-transformers model behind its transformer.

    Their names begin with the module's folder: ``2_Dense/linear.weight``.
    """
    return {
        f"{path}/{name}": replace(tensor, name=f"{path}/{name}")
        for path, file in weight_files_below(folder).items()
        for name, tensor in read_header(file).items()
    }


def open_checkpoint(ref: str) -> Checkpoint:
    """Open a local folder or a hub id (``org/name[@revision]``); reads no weight."""
    from merge_plugins.weights.hub import resolve

    path = resolve(ref)
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        raise CheckpointError(
            f"{ref} is a LoRA adapter, not a model. Name the model it was trained on too: "
            f"{base or '<model>'}+{ref} (in models= of model_args, {base or '<model>'}++{ref})."
        )
    if path.suffix == ".gguf":
        raise quantized(ref, "a GGUF file")
    checkpoint = Checkpoint(ref, path)
    refuse(ref, checkpoint, checkpoint.config)
    return checkpoint


PACKED = re.compile(
    r"\.(qweight|qzeros|SCB|absmax|quant_map|quant_state\.\w+|weight_packed|weight_scale(_inv)?)$"
)
"""Name endings of tensors with packed integers, or with the scales that unpack them."""


def refuse(ref: str, names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for a quantised model, or an adapter given as one."""
    names = list(names)
    packed = next(filter(PACKED.search, names), None)
    if packed or config.get("quantization_config"):
        raise quantized(ref, packed or "quantization_config in its config.json")
    adapter = next((name for name in names if ".lora_A" in name), None)
    if adapter:
        raise CheckpointError(
            f"{ref} is a LoRA adapter, it has {adapter}, not a model. Name the model it was "
            f"trained on too: {{model: <model>, lora: <its folder>}}"
        )


def quantized(ref: str, sign: str) -> CheckpointError:
    """Build the error for a quantised model; ``sign``: the evidence that it is one."""
    return CheckpointError(
        f"{ref} is quantised ({sign}); averaging packed integers means nothing. "
        "Name the full-precision model and quantise the merge while loading."
    )
