"""A family of tiny Llamas, three offline tasks, and lm-eval as a function and as a program."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import seeded, write_family
from lm_eval import evaluator
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merge_plugins import Recipe, save

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CAPITALS = [
    {"country": "Thailand", "choices": ["Bangkok", "Hanoi", "Rome"], "label": 0},
    {"country": "Vietnam", "choices": ["Rome", "Hanoi", "Bangkok"], "label": 1},
    {"country": "Italy", "choices": ["Hanoi", "Bangkok", "Rome"], "label": 2},
    {"country": "Kenya", "choices": ["Nairobi", "Jakarta", "Rome"], "label": 0},
]
SUMS = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(3) for b in range(2)]
TEXTS = [{"text": "the quick brown fox jumps over the lazy dog " * 3}, {"text": "a small test"}]
TASKS = {
    "tiny_choice": (
        CAPITALS,
        "output_type: multiple_choice\n"
        'doc_to_text: "The capital of {{country}} is"\n'
        "doc_to_choice: choices\n"
        "doc_to_target: label\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    ),
    "tiny_generate": (
        SUMS,
        "output_type: generate_until\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_target: "{{answer}}"\n'
        'generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 12}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    ),
    "tiny_rolling": (
        TEXTS,
        "output_type: loglikelihood_rolling\n"
        'doc_to_text: ""\n'
        'doc_to_target: "{{text}}"\n'
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
    ),
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing in the checkout; lm-eval makes ./offload."""
    monkeypatch.chdir(tmp_path)


class Family:
    """Folders of a base and two fine-tunes of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base, self.math, self.code = (str(root / name) for name in ("base", "math", "code"))

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """Return model_args of a merge of the two fine-tunes."""
        models = f"{self.math}:0.6+{self.code}:0.4"
        return {"method": "linear", "base_model": self.base, "models": models, **changes}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the tests' own words, with a chat template and BOS."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [json.dumps(row) for row in (*CAPITALS, *SUMS, *TEXTS)]
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Tiny Llamas that every supported transformers release can read."""
    found = Family(tmp_path_factory.mktemp("family"))
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # older releases cut a head only into equal parts
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = seeded(config, LlamaForCausalLM)
    with torch.no_grad():  # weights large enough for models that disagree with each other
        for weight in model.parameters():
            weight.mul_(3) if weight.ndim == 2 else None
    # Both of these change what is generated, and neither is in config.json.
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 5], pad_token_id=0, repetition_penalty=1.3
    )
    names = ("base", "math", "code")
    for folder in write_family(model, found.root, names, spread=0.03, tokenizer=tokenizer).values():
        make_readable_by_old_releases(Path(folder))
    return found


def make_readable_by_old_releases(folder: Path) -> None:
    """Spell what transformers 5 writes so that transformers 4 reads the same."""
    edit_json(folder / "config.json", dtype="float32", torch_dtype="float32")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="session")
def saved(family: Family) -> str:
    """The merge of `Family.recipe`, on disk."""
    folder = family.root / "saved"
    save(Recipe.from_model_args(family.recipe()), folder)
    make_readable_by_old_releases(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task per output type, for ``--include_path``."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, (rows, settings) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder / 'cache'}}}\n"
            f"test_split: test\nfewshot_split: test\n{settings}metadata: {{version: 1.0}}\n"
        )
    return folder


class Outcome:
    """What a run of lm-eval found."""

    def __init__(
        self, results: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]], file: Path
    ) -> None:
        self.results, self.file = results, file
        self.out = self.err = ""
        """What a program wrote to both streams."""
        self.scores = results["results"]
        self.answers = {
            f"{task}/{sample['doc_id']}": as_text(sample["resps"])
            for task, found in sorted(samples.items())
            for sample in sorted(found, key=lambda sample: sample["doc_id"])
        }


def as_text(answer: Any) -> Any:
    """Spell an answer as lm-eval's files do: lists of text."""
    return [as_text(part) for part in answer] if isinstance(answer, list | tuple) else str(answer)


@pytest.fixture(scope="session")
def evaluate(tasks: Path) -> Callable[..., Outcome]:
    """`lm_eval.simple_evaluate` on the tiny tasks."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    torch.set_num_threads(1)  # models this small lose by more
    evaluator.add_env_info = lambda results: None  # asks pip and git for a second each time

    def run(model: str, model_args: Any, **options: Any) -> Outcome:
        defaults = {"device": "cpu", "bootstrap_iters": 0, "tasks": list(TASKS)}
        found = evaluator.simple_evaluate(
            model, model_args, task_manager=manager, **{**defaults, **options}
        )
        return Outcome(found, found["samples"], Path())

    return run


@pytest.fixture(scope="session")
def command(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Run a program of this environment on the tiny tasks; read the files it wrote."""

    cache = str(tmp_path_factory.mktemp("cache"))
    alone = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}

    def run(*words: str, **variables: str) -> Outcome:
        output = tmp_path_factory.mktemp("output")
        program, *arguments = words
        common = ["--include_path", tasks, "--output_path", output, "--log_samples"]
        done = subprocess.run(
            [Path(sys.executable).parent / program, *arguments, *common],
            capture_output=True,
            text=True,
            cwd=output,
            env={**os.environ, **alone, **variables},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found = read(output)
        found.out, found.err = done.stdout, done.stderr
        return found

    return run


@pytest.fixture
def fewer_tasks(tmp_path: Path) -> Callable[[str], str]:
    """Write a script that runs code without lm-eval's own 14,000 tasks; return its path.

    Every process of lm-eval reads all their files, for 12 s.
    """

    def script(code: str) -> str:
        file = tmp_path / "fewer_tasks.py"
        file.write_text(
            "from functools import wraps\n"
            "from lm_eval.tasks import TaskManager\n"
            "init = TaskManager.__init__\n"
            "@wraps(init)\n"
            "def alone(*args, **kwargs):\n"
            "    init(*args, **{**kwargs, 'include_defaults': False})\n"
            f"TaskManager.__init__ = alone\n{code}"
        )
        return str(file)

    return script


@pytest.fixture
def here(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run lm-eval's command line in this process, which has imported it, with our tiny tasks."""
    alone = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", alone)

    def run(*words: str) -> Outcome:
        output = tmp_path / "output"
        common = ["--include_path", str(tasks), "--output_path", str(output), "--log_samples"]
        monkeypatch.setattr(sys, "argv", [*words, *common])
        cli_evaluate()
        return read(output)

    return run


def read(output: Path) -> Outcome:
    """Read what lm-eval wrote to ``--output_path``."""
    (file,) = output.rglob("results_*.json")
    samples = {
        found.name.removeprefix("samples_").rsplit("_", 1)[0]: [
            json.loads(line) for line in found.read_text().splitlines()
        ]
        for found in output.rglob("samples_*.jsonl")
    }
    return Outcome(json.loads(file.read_text()), samples, file)
