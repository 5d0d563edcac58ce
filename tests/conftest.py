"""Tiny checkpoints, written in a line, and merged in a line."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import SMALL, seeded, word_tokenizer, write_family
from hypothesis import HealthCheck, settings
from memorised import KNOWN, Memorised, examples, memorise
from safetensors.torch import save_file
from torch import Tensor

from merge_plugins import Recipe, parallel
from merge_plugins.engine import MergedTensor, merged_tensors
from merge_plugins.plugins import registry

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, also for the programs that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# A busy machine is slow, and that is no failure.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

Write = Callable[..., str]
Recipes = Callable[..., Recipe]
Merged = Callable[..., dict[str, MergedTensor]]


@pytest.fixture(scope="session", autouse=True)
def _content_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what we remember about throw-away files out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGE_PLUGINS_CACHE", str(folder))
        yield


@pytest.fixture(scope="module", autouse=True)
def _old_objects() -> None:
    """Leave what earlier files imported and share out of garbage collection.

    Calibration collects after every live model, which took 0.4 s for the half million objects of
    transformers and pytest.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write tensors, and keys of a config, as a model folder of its own; return the folder."""
    root, numbers = tmp_path_factory.mktemp("checkpoints"), itertools.count()

    def write(tensors: Mapping[str, Tensor], name: str = "model", **config: Any) -> str:
        folder = root / f"{name}-{next(numbers)}"
        folder.mkdir()
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / WEIGHTS)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return write


WEIGHTS = "model.safetensors"
TOP = ("data", "dtype", "out_dtype", "seed", "tokenizer_source")


@pytest.fixture(scope="session")
def recipe() -> Recipes:
    """Spell a recipe: keyword arguments are parameters, or keys of the recipe itself."""

    def spell(method: str, base: str | None, experts: Sequence[str], **given: Any) -> Recipe:
        top = {key: given.pop(key) for key in TOP if key in given}
        models = [{"model": expert} for expert in experts]
        named = {} if base is None else {"base_model": base}
        return Recipe.from_mapping(
            {"merge_method": method, "models": models, "parameters": given, **named, **top}
        )

    return spell


@pytest.fixture(scope="session")
def merged(recipe: Recipes) -> Merged:
    """Merge lazily what `recipe` spells."""
    return lambda *words, **given: merged_tensors(recipe(*words, **given))


@pytest.fixture
def plugin_file(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Write a plugin of one method in a file; what a test loads is forgotten after it."""

    def write(call: str, name: str = "own", *, file: str = "own.py", **parts: str) -> Path:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(OWN.format(call=call, name=name, **{"body": "", "facts": "", **parts}))
        return path

    yield write
    for label in [*registry().files]:
        registry().unload(label)


OWN = """from dataclasses import dataclass

import torch
from merge_plugins import ELEMENT, WHOLE, hookimpl, parameter


@dataclass(frozen=True)
class Own:
    scale: float = parameter(1.0, doc="factor")
    granularity = ELEMENT
    {body}

    def __call__(self, slot):
        {call}


@hookimpl
def register_merge_methods(register):
    register("{name}", Own{facts})
"""


@pytest.fixture
def with_threads() -> Iterator[Callable[[int], None]]:
    """Choose how many threads merge; restored afterwards."""
    before = torch.get_num_threads()

    def choose(n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        parallel._pools.clear()

    yield choose
    choose(before)


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The full set of reference tensors, where this checkout has it."""
    folder = Path(__file__).parents[2] / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip("only a few of the reference tensors are in this checkout, in tests/data")
    return folder


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Llama with tokenizer and generation config, and two fine-tunes of it, in bfloat16."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    model = seeded(LlamaConfig(**SMALL), LlamaForCausalLM).bfloat16()
    model.generation_config = GenerationConfig(eos_token_id=[2, 3], repetition_penalty=1.25)
    words = ["<pad>", "<s>", "</s>", *map(str, range(61))]
    return write_family(
        model,
        tmp_path_factory.mktemp("llamas"),
        ("base", "math", "code"),
        spread=0.01,
        tokenizer=word_tokenizer(words, unknown="<pad>", blanks=True, eos_token="</s>"),
    )


@pytest.fixture(scope="session")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Memorised:
    """A base and two experts whose merge solves exactly three of six problems in MBPP's format."""
    known = {name: examples(rows) for name, rows in KNOWN.items()}
    return memorise(tmp_path_factory.mktemp("memorised"), known)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch run on one thread: layers as small as tests' only wait for others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a test a cache in which nothing is remembered yet."""
    monkeypatch.setenv("MERGE_PLUGINS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Folders of a base and of a classifier of each task, by kind of encoder: text_classifiers."""
    from text_classifiers import write_experts

    root = tmp_path_factory.mktemp("classifiers")
    return functools.cache(lambda kind: write_experts(kind, root / kind))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of labelled rows, by task of those classifiers."""
    from text_classifiers import TASKS, write_rows

    root = tmp_path_factory.mktemp("rows")
    return {task: write_rows(task, root) for task in TASKS}
