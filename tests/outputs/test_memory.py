"""How much memory a merge takes: that of one model, and blocks in work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import write_zeros
from private_memory import STATUS, for_program

MEASURE = """
import json, sys
import torch, transformers
from merge_plugins import Recipe, load_merged
from private_memory import peak_of

torch.set_num_threads(2)
recipe = Recipe.from_mapping(json.loads(sys.argv[1]))
model, peak = peak_of(lambda: load_merged(recipe))
size = sum(w.numel() * w.element_size() for w in model.parameters())
print(json.dumps([size, peak]))
"""


def large_and_empty(n: int, root: Path, **sizes: int) -> list[str]:
    """Write Llamas of zeros whose files take no room on disk."""
    config = transformers.LlamaConfig(**sizes, dtype="bfloat16")
    return [_empty(config, root / str(i)) for i in range(n)]


def _empty(config: Any, folder: Path) -> str:
    config.save_pretrained(folder)
    with torch.device("meta"):
        weights = transformers.LlamaForCausalLM(config).state_dict()
    write_zeros(folder, {name: weight.shape for name, weight in weights.items()})
    return str(folder)


def memory(
    method: str, base: str, experts: list[str], given: Mapping[str, float]
) -> tuple[int, int]:
    """Return bytes of a merged model, and at most of private memory while it is made."""
    recipe = {"merge_method": method, "base_model": base, "models": experts, "parameters": given}
    command = [sys.executable, "-c", MEASURE, json.dumps(recipe)]
    said = subprocess.check_output(command, text=True, timeout=300, env=for_program())
    size, peak = json.loads(said)
    return size, peak


linux = pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")


@linux
def test_memory_is_one_model_whatever_the_number_of_experts(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    base, *experts = large_and_empty(7, tmp_path, vocab_size=32000, **sizes, **heads)
    given = {"weight": 1.0, "density": 0.5}
    size, two = memory("ties", base, experts[:2], given)
    _, six = memory("ties", base, experts, given)
    assert size > 100e6
    assert two < 1.15 * size + 140e6  # later imports; blocks in work, and what malloc keeps of them
    assert six < two + 0.5 * size  # blocks in work; copies would be four more models


@linux
@pytest.mark.parametrize("method", ["tsv", "iso_cts"])
def test_a_matrix_is_never_held_in_float64(method: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1}
    base, *experts = large_and_empty(
        3, tmp_path, vocab_size=200_000, **sizes, num_attention_heads=2
    )
    size, peak = memory(method, base, experts, {})
    assert size > 100e6  # half of it the head, which would be four times as large
    assert peak < 1.15 * size + 140e6
