"""The steps that load.py times, each in its own process: python steps.py NAME ARGUMENT..."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import Tensor

# LlamaForCausalLM is imported here so that no step imports it inside the time it reports.
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import merge_plugins
from merge_plugins.memory import new_memory
from merge_plugins.parallel import parallel
from merge_plugins.plugins import registry

registry()  # imports every method, as mergekit's own imports do
DELTA_SPREAD = (
    3e-4  # of an expert's task vector: 1.5 % of the weights' own 0.02, as fine-tunes have
)


def imports() -> dict[str, Any]:
    """Import what every step imports, and stop."""
    return {}


def read(*folders: str) -> dict[str, Any]:
    """Read every byte of the weight files."""
    buffer, n_bytes = bytearray(16 << 20), 0
    for path in (path for folder in folders for path in weight_files(folder)):
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                n_bytes += n
    return {"bytes": n_bytes}


def limit(*folders: str) -> dict[str, Any]:
    """Do what no merge can do without: read every source once, and touch the memory of one."""
    block = 1 << 20
    mapped = [
        tensor.reshape(-1).view(torch.int64) for f in folders for tensor in weights(f).values()
    ]
    parallel(torch.sum, [part for tensor in mapped for part in tensor.split(block)])
    first = weights(folders[0])
    merged = [new_memory(tensor.shape, tensor.dtype, tensor.device) for tensor in first.values()]
    parallel(torch.Tensor.zero_, [part for t in merged for part in t.view(-1).split(block)])
    return {"bytes": sum(tensor.nbytes for tensor in merged)}


def mapped(folder: str) -> dict[str, Any]:
    """Call from_pretrained as users do; transformers 5 maps the files and reads no weight yet."""
    return weight_bytes(AutoModelForCausalLM.from_pretrained(folder))


def loaded(folder: str) -> dict[str, Any]:
    """Load a model into private memory, the state in which `merged` leaves one."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return weight_bytes(model)


def merged(recipe: str) -> dict[str, Any]:
    """Turn a recipe into a live model."""
    return weight_bytes(merge_plugins.load_merged(merge_plugins.Recipe.load(recipe)))


def agreement(recipe: str, folder: str) -> dict[str, Any]:
    """Compare our tensors with mergekit's: equal share, and the worst difference in ulps."""
    plain = yaml.safe_load(Path(recipe).read_text())
    refs = dict.fromkeys([plain.get("base_model"), *(m["model"] for m in plain["models"])])
    sources = [weights(ref) for ref in refs if ref]
    ours, theirs = merge_plugins.merged_tensors(merge_plugins.Recipe.load(recipe)), weights(folder)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other tensors than mergekit's: {sorted(ours.keys() ^ theirs.keys())}")
    n, n_equal, n_undecided, worst = 0, 0, 0, 0.0
    for name, other in theirs.items():
        terms, mine = torch.stack([source[name] for source in sources]), ours[name][...]
        undecided = torch.zeros(other.shape, dtype=torch.bool)
        if plain["merge_method"] == "ties":
            density = plain["models"][0]["parameters"]["density"]
            undecided = at_threshold(terms[1:] - terms[0], density).any(0)
        n += other.numel()
        n_undecided += int(undecided.sum())
        n_equal += int(((mine == other) & ~undecided).sum())
        worst = max(worst, float((ulps(mine, other, terms) * ~undecided).max()))
    return {"equal": n_equal / (n - n_undecided), "ulps": worst, "undecided": n_undecided / n}


def ulps(mine: Tensor, other: Tensor, terms: Tensor) -> Tensor:
    """Return differences in bfloat16 steps at the largest term: cancelling terms leave no fewer."""
    exponent = torch.frexp(terms.abs().amax(0).float()).exponent
    return (mine.float() - other.float()).abs() * torch.exp2(8.0 - exponent)


def at_threshold(deltas: Tensor, density: float) -> Tensor:
    """Return where a magnitude equals the least that trimming keeps: any of these may go."""
    magnitudes = deltas.abs().flatten(1)
    n_dropped = magnitudes.shape[1] - int(density * magnitudes.shape[1])
    threshold = magnitudes.kthvalue(min(n_dropped + 1, magnitudes.shape[1]), dim=1, keepdim=True)
    at = (magnitudes == threshold.values) & (magnitudes > 0)
    return at.view_as(deltas)


def create(workdir: str, n_layers: str, n_experts: str) -> dict[str, Any]:
    """Write a base of 0.5 B parameters (at 24 layers) and its experts, in bfloat16.

    Embeddings are tied, as in real models of this size, and are one fifth of it: a weight of
    98 M elements is where an engine that works tensor by tensor needs most memory.
    """
    config = LlamaConfig(
        vocab_size=96_000,
        hidden_size=1024,
        intermediate_size=4608,
        num_hidden_layers=int(n_layers),
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    write(base, Path(workdir, "base"))
    for i in range(int(n_experts)):
        generator, expert = torch.Generator().manual_seed(i), copy.deepcopy(base)
        for weight in expert.parameters():
            noise = DELTA_SPREAD * torch.randn(weight.shape, generator=generator)
            weight.data = noise.add_(weight.data).bfloat16()
        write(expert, Path(workdir, f"expert_{i}"))
    return weight_bytes(base)


def write(model: LlamaForCausalLM, folder: Path) -> None:
    """Save with a tokenizer, which mergekit copies."""
    model.save_pretrained(folder, max_shard_size="300MB")
    vocabulary = {f"token{i}": i for i in range(model.config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="token0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="token0").save_pretrained(folder)


def weight_files(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def weights(folder: str) -> Mapping[str, Tensor]:
    return {name: t for path in weight_files(folder) for name, t in load_file(path).items()}


def weight_bytes(model: torch.nn.Module) -> dict[str, Any]:
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return {"bytes": sum(held.values())}


STEPS = {f.__name__: f for f in (imports, read, limit, mapped, loaded, merged, agreement, create)}

if __name__ == "__main__":
    start, busy = time.perf_counter(), time.process_time()
    facts = STEPS[sys.argv[1]](*sys.argv[2:])
    alone = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    print(json.dumps({**alone, **facts}))
