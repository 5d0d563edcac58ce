"""Every command of docs/from_the_seeds.md is checked, and merges, on tiny models of those names."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from embedders import embedder
from families import drift

from merge_plugins import Recipe, load_classifiers, load_merged
from merge_plugins.cli import main
from merge_plugins.recipe import read_recipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "from_the_seeds.md"
LAST = 76


class Row(NamedTuple):
    number: str
    ours: str
    """A command, or the reason there is none."""


def rows() -> list[Row]:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+\w?) \| .* \| (.*) \|$", text, flags=re.M)
    return [Row(*pair) for pair in found]


def blocks(language: str) -> list[str]:
    text = DOCUMENT.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands() -> list[Row]:
    found = [(row, re.match("`(.+?)`", row.ours)) for row in rows()]
    return [Row(row.number, command[1]) for row, command in found if command]


def recipe_of(command: str) -> str | None:
    """The recipe in one of our commands; None: it names none."""
    words = shlex.split(command)
    if words[0] == "lm_eval":
        return words[words.index("--model_args") + 1]
    if words[:2] in (["merge-plugins", "save"], ["merge-plugins", "pairs"]):
        return words[2]
    if words[:3] == ["python", "-m", "harness_adapters.mteb"]:
        return words[words.index("-m", 2) + 1]
    if words[:2] == ["python", "-m"]:
        return next(word for word in words if word.startswith("method="))
    if words[:2] == ["python", "-c"]:
        found = re.search(r"Recipe\.load\('(.+?)'\)", words[2])
        return found[1] if found else None
    return None


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with every model that the document names, tiny, and its files; the current one."""
    folder, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    os.chdir(folder)
    write_models()
    for text in blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        Path(name).write_text(text, encoding="utf-8")
    write_data()
    yield folder
    os.chdir(before)


def test_every_command_of_the_seeds_is_there() -> None:
    numbers = {int(re.match(r"\d+", row.number)[0]) for row in rows()}  # type: ignore[index]
    text = DOCUMENT.read_text(encoding="utf-8")
    numbers |= {int(n) for n in re.findall(r"^\*\*(\d+)\.\*\*", text, flags=re.M)}
    assert numbers == set(range(1, LAST + 1))


@pytest.mark.parametrize("row", commands(), ids=lambda row: row.number)
def test_every_command_is_right(row: Row, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = recipe_of(row.ours)
    if given is None:
        assert main(shlex.split(row.ours.removeprefix("merge-plugins "))) == 0
        return
    status = main(["check", merge_of(given)])
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize("row", commands(), ids=lambda row: row.number)
def test_every_command_merges(row: Row, desk: Path) -> None:
    given = recipe_of(row.ours)
    if given is None:
        pytest.skip("merges nothing")
    recipe = read_recipe(merge_of(given))
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    kinds = {"roberta": AutoModelForSequenceClassification, "embedder": AutoModel}
    auto_class = next((kinds[word] for word in kinds if word in given), AutoModelForCausalLM)
    if recipe.tasks:
        models = [load_classifiers(recipe).for_task(task)[0] for task in recipe.tasks]
    else:
        models = [load_merged(recipe, auto_class)]
    for model in models:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([[1, 5, 9]]))[0]
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("code", blocks("python"))
def test_the_functions_of_lm_cocktail_run(code: str, desk: Path) -> None:
    names: dict[str, object] = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    assert isinstance(names["model"], torch.nn.Module)


def test_the_files_of_the_document_are_used(desk: Path) -> None:
    used = DOCUMENT.read_text(encoding="utf-8")
    for text in blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        assert used.count(name) >= 2, f"no command uses {name}"
        assert Recipe.load(name).to_yaml()
        assert yaml.safe_load(text)


def merge_of(given: str) -> str:
    """The short form without what is the harness's own."""
    if "=" not in given:
        return given
    harness = ("tp_plan", "parallelize", "tokenizer", "experts")
    parts = [part for part in given.split(",") if part.partition("=")[0] not in harness]
    return parts[0].removeprefix("config=") if parts[0].startswith("config=") else ",".join(parts)


LLAMAS = {
    "Qwen/Qwen1.5-7B": ("Qwen/Qwen1.5-7B-Chat", "sail/Sailor-7B"),
    "meta-llama/Llama-2-13b-hf": ("layoric/llama-2-13b-code-alpaca",),
    "meta-llama/Llama-2-7b-hf": (
        "WizardLMTeam/WizardMath-7B-V1.0",
        "huggyllama/llama-7b",
        "WizardLM/WizardLM-7B-V1.0",
        "meta-llama/Llama-2-7b-chat-hf",
        "Shitao/llama2-ag-news",
        "Shitao/llama2-nq",
    ),
    "codellama/CodeLlama-13b-Python-hf": ("WizardLMTeam/WizardCoder-Python-13B-V1.0",),
    "Qwen/Qwen-14B": (),
}
PADDED = ("WizardLMTeam/WizardLM-13B-V1.2", "WizardLMTeam/WizardMath-13B-V1.0")
"""Have one token more than their base."""
GLUE = {"cola": 2, "sst2": 2, "mrpc": 2, "stsb": 1, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2}
EMBEDDERS = (
    "BAAI/bge-base-en-v1.5",
    *(f"Shitao/bge-{n}" for n in ("hotpotqa", "quora", "msmarco")),
)
RERANKERS = ("BAAI/bge-reranker-base", "BAAI/bge-reranker-large-ft")


def write_models() -> None:
    """Write every model the document names, in float32, with a tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedModel,
        RobertaConfig,
        RobertaForMaskedLM,
        RobertaForSequenceClassification,
    )

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    size |= {"num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 128}
    plain, padded = tokenizer(), tokenizer("[PAD]")

    def save(model: PreTrainedModel, name: str, words: object = plain) -> None:
        model.save_pretrained(name)
        words.save_pretrained(name)  # type: ignore[attr-defined]

    for base, experts in LLAMAS.items():
        model = LlamaForCausalLM(LlamaConfig(**size))
        save(model, base)
        for expert in experts:
            save(drift(model, 0.02), expert)
    model = LlamaForCausalLM.from_pretrained("meta-llama/Llama-2-13b-hf")
    model.resize_token_embeddings(65, mean_resizing=False)
    for expert in PADDED:
        save(drift(model, 0.02), expert, padded)
    for task in ("mmlu", "truthfulqa", "bbq", "cnn"):
        model = LlamaForCausalLM.from_pretrained("Qwen/Qwen-14B")
        lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(f"qwen/qwen-{task}")
    save(RobertaForMaskedLM(RobertaConfig(**size)), "FacebookAI/roberta-base")
    for task, n_labels in GLUE.items():
        config = RobertaConfig(**size, num_labels=n_labels, pad_token_id=0)
        model = RobertaForSequenceClassification(config)
        body = RobertaForMaskedLM.from_pretrained("FacebookAI/roberta-base").roberta
        model.roberta.load_state_dict(body.state_dict())
        for folder in ("glue", "roberta"):
            save(drift(model, 0.02), f"{folder}/{task}")
    model = BertModel(BertConfig(**size))
    for name in EMBEDDERS:
        save(drift(model, 0.02), name)
        embedder(name, ("cls", "normalize"))
    model = BertForSequenceClassification(BertConfig(**size, num_labels=1))
    for name in RERANKERS:
        save(drift(model, 0.02), name)


def tokenizer(*more: str) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(97, 123)] + [chr(c) for c in range(65, 91)] + list(' .?!:\n,"')
    words = ["<unk>", "<s>", "</s>", *letters][:64]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if more:
        special["pad_token"] = more[0]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_data() -> None:
    """Write the calibration files that the document's recipes name."""
    for at, name in enumerate((*GLUE, "mmlu", "truthfulqa", "bbq", "cnn")):
        texts = [f"{name} says {'yes' * (i % 3 + 1)} {chr(97 + at) * (i + 1)}" for i in range(12)]
        labels = [i / 2 if name == "stsb" else i % 2 for i in range(12)]
        rows = zip(texts, labels, strict=True)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    pairs = [{"input": "who is there?", "output": "me"}, {"input": "what?", "output": "nothing"}]
    Path("examples.jsonl").write_text("\n".join(map(json.dumps, pairs)))
