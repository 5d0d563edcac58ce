"""Tiny models that vLLM's CPU build runs, their merges mounted and saved, and engines on them.

Engines run in processes of their own: each takes most of a minute to start and all memory it finds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import seeded, word_tokenizer, write_family
from needed import need

from merge_plugins import Recipe, mount, save

PROMPTS = ("3 + 4", "one two three four five", "9", "10 20 30 40 50 60 1 2 3")
Ask = Callable[..., list[list[Any]]]
ENGINE = """
import json, sys
from vllm import LLM, SamplingParams

def main():
    options, prompts, reloads, asked = json.loads(sys.stdin.read())
    engine = LLM(**options)
    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=1, ignore_eos=True)
    found = []
    for path in (None, *reloads):
        if path is not None:
            engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
            engine.reset_prefix_cache()
        outputs = [one.outputs[0] for one in engine.generate(prompts, sampling, use_tqdm=False)]
        found.append([
            [one.text, [[t, held[t].logprob] for t, held in zip(one.token_ids, one.logprobs)]]
            for one in outputs
        ] + [engine.collective_rpc(name) for name in asked])
    print("FOUND" + json.dumps(found))

if __name__ == "__main__":  # vLLM starts its workers by spawning
    main()
"""


@pytest.fixture(scope="session")
def vllm() -> None:
    need("vllm.config", "REQUIRE_VLLM")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of each family: models base, math and code; merges good and wrecked, in three forms.

    A recipe FAMILY/good.yaml, the recipe folder FAMILY/good and the checkpoint FAMILY/good-saved.
    """
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("vllm")
    words = [
        "<pad>",
        "<s>",
        "</s>",
        "+",
        "=",
        "one",
        "two",
        "three",
        "four",
        "five",
        *map(str, range(54)),
    ]
    for family, config in _configs().items():
        write_family(
            seeded(config, AutoModelForCausalLM),
            root / family,
            ("base", "math", "code"),
            spread=0.02,
            tokenizer=word_tokenizer(words, unknown="<pad>", blanks=True, eos_token="</s>"),
        )
        for name, scale in (("good", 0.7), ("wrecked", -40.0)):
            file = root / family / f"{name}.yaml"
            file.write_text(spelled(scale))
            mount(Recipe.load(file), root / family / name)
            save(Recipe.load(file), root / family / f"{name}-saved")
    return root


def spelled(scale: float) -> str:
    """The text of a recipe that measures whole weights before it merges any part of one."""
    held = {"merge_method": "ties", "base_model": "base", "models": ["math", "code"]}
    parameters = {"weight": 1.0, "density": 0.6, "lambda": scale}
    return yaml.safe_dump({**held, "parameters": parameters, "dtype": "float32"})


def _configs() -> dict[str, Any]:
    """A Llama, a mixture of experts that embeds tokens with its head, and a wide Llama."""
    from transformers import LlamaConfig, Qwen3MoeConfig

    sizes = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 128,
    }
    wide = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2816}
    wide |= {"num_attention_heads": 16, "num_hidden_layers": 1}
    experts = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
    return {
        "dense": LlamaConfig(**sizes),
        "moe": Qwen3MoeConfig(**sizes, **experts, tie_word_embeddings=True),
        "wide": LlamaConfig(**{**sizes, **wide}),
    }


@pytest.fixture
def ask(vllm: None, workplace: Path, tmp_path: Path) -> Ask:
    """Start an engine in the workplace; return texts, tokens and log-probabilities.

    One list before, and one after each of ``reloads``; last in each is what every worker returns
    for each method that it is ``asked``.
    """

    def run(
        model: str, *, reloads: tuple[str, ...] = (), asked: tuple[str, ...] = (), **options: Any
    ) -> list[list[Any]]:
        script = tmp_path / "engine.py"
        script.write_text(ENGINE)
        given = {
            "model": model,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 64,
            "max_num_seqs": 4,
            **options,
        }
        done = subprocess.run(
            [sys.executable, script],
            cwd=workplace,
            input=json.dumps([given, PROMPTS, reloads, asked]),
            capture_output=True,
            text=True,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        line = next((x for x in done.stdout.splitlines() if x.startswith("FOUND")), None)
        if done.returncode or line is None:
            raise RuntimeError(done.stdout + done.stderr)
        found: list[list[Any]] = json.loads(line.removeprefix("FOUND"))
        return found

    return run


ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
