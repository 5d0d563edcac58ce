"""Measure what it costs to turn a live vLLM engine into another merge, beside a restart.

    python benchmarks/serving.py --layers 4 --swaps 50

Writes a base and two experts, starts an engine on a merge of them, and swaps it among five merges.
Reports seconds of a restart (a process that imports vLLM, starts an engine and answers once), of
the engine's part of it, and of a swap; memory; and whether the log-probabilities of each merge
were the same to the last bit every time that it came.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from family import create_family

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process to measure
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else most of the machine's memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="of 18 M weights each (4)")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--only-start", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_start:
        start(options.only_start).log_probabilities([[1, 2, 3]])
        return
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(measure(Path(root), options.layers, options.swaps), indent=2))


def measure(root: Path, layers: int, swaps: int) -> dict[str, Any]:
    import vllm  # noqa: F401 - imported before the clock starts

    from harness_adapters.vllm.swap import LiveEngine
    from merge_plugins import mount

    changes = {"num_hidden_layers": layers, "vocab_size": 32_000, "tie_word_embeddings": False}
    models = create_family(root, "0.17", **changes)
    recipes = [recipe(models, scale) for scale in (0.2, 0.4, 0.6, 0.8, 1.0)]
    folder = mount(recipes[0], root / "mounted")
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--only-start", folder], check=True)
    restart = time.perf_counter() - started
    started = time.perf_counter()
    engine = start(folder)
    starting = time.perf_counter() - started
    live = LiveEngine(engine, recipes[0])
    started = time.perf_counter()
    live.become(recipes[1])
    verification = time.perf_counter() - started
    seconds, memory = [], []
    answers: dict[int, Any] = {}
    differing = 0
    for number in range(swaps):
        which = number % len(recipes)
        started = time.perf_counter()
        live.become(recipes[which])
        seconds.append(time.perf_counter() - started)
        found = live.log_probabilities()
        differing += answers.setdefault(which, found) != found
        memory.append(psutil.Process().memory_info().rss / 2**20)
    return {
        "restart, s": round(restart, 2),
        "the engine's part of it, s": round(starting, 2),
        "first swap, with its verification, s": round(verification, 2),
        "swap, median s": round(statistics.median(seconds), 3),
        "swap / restart": round(statistics.median(seconds) / restart, 3),
        "swap / the engine's part": round(statistics.median(seconds) / starting, 3),
        "MiB after the 1st, 10th and last swap": [round(memory[i]) for i in (0, 9, -1)],
        "recipes": len(answers),
        "swaps whose canary differed from the same recipe's before": differing,
    }


def start(folder: Path) -> Any:
    """Start an engine on a mounted merge."""
    from vllm import LLM

    from harness_adapters.vllm import engine_options
    from harness_adapters.vllm.engines import InProcess

    return InProcess(
        LLM(
            str(folder),
            load_format="merged",
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=512,
            **engine_options(),
        )
    )


def recipe(models: list[Path], scale: float) -> Any:
    from merge_plugins import Recipe

    base, *experts = map(str, models)
    return Recipe.from_mapping(
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": experts,
            "parameters": {"weight": 1.0, "lambda": scale},
        }
    )


if __name__ == "__main__":
    main()
