"""Tiny classifiers of four tasks of GLUE around one base, with rows in the columns of GLUE."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from families import drift, edit, folders, seeded, word_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = [f"w{i}" for i in range(60)]
SMALL: Mapping[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
KINDS: Mapping[str, Any] = {
    "bert": (BertConfig, BertModel, BertForSequenceClassification),
    "poolerless": (BertConfig, BertForMaskedLM, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification),
}
CONTRADICTION_FIRST = {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}
"""As roberta-large-mnli names its classes; the data set begins with entailment."""
HEADS: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "cola": (2, {}),
    "rte": (2, {"id2label": {"0": "not_entailment", "1": "entailment"}}),
    "mnli": (3, {"id2label": CONTRADICTION_FIRST}),
    "stsb": (1, {}),
}
"""Number of labels of each expert, and what its config says of them."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "rte": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "mnli_mismatch": ("premise", "hypothesis"),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
SAME_ROWS = {"wnli": "rte"}
"""A task whose rows, and so its prompts, are another one's."""
SPLITS = {"mnli": "validation_matched", "mnli_mismatch": "validation_mismatched"}


def write_classifiers(root: Path, kind: str = "roberta") -> dict[str, str]:
    """Write a masked language model and, from its encoder, an expert of each task."""
    config_class, base_class, expert_class = KINDS[kind]
    base = loud(seeded(config_class(**SMALL), base_class))
    save(base, root / "base")
    for name, (n_labels, said) in HEADS.items():
        expert = loud(seeded(config_class(**SMALL, num_labels=n_labels), expert_class))
        own = {key: w for key, w in base.base_model.state_dict().items() if "pooler" not in key}
        expert.base_model.load_state_dict(own, strict=False)
        drift(expert, 0.1)
        save(expert, root / name)
        edit(root / name, **said)
    return folders(root, ("base", *HEADS))


def loud(model: Any) -> Any:
    """Enlarge the weights of a new model, so that its answers depend on what it reads."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8) if weight.ndim == 2 else None
    return model


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> Any:
    """Build a tokenizer of whole words that marks the ends of one text or two, and their types."""
    from tokenizers import processors

    found = word_tokenizer(
        [*SPECIAL, *WORDS],
        unknown="<unk>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=16,
    )
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return found


def rows_of(task: str, n: int = 14) -> list[dict[str, Any]]:
    """Make rows of a task; texts of many lengths, some longer than the models read."""
    like = SAME_ROWS.get(task, task)
    draw = random.Random(like)
    n_labels = HEADS[like.partition("_")[0]][0]

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))

    return [
        {name: text() for name in COLUMNS[task]}
        | {"label": draw.randrange(n_labels) if n_labels > 1 else 5 * draw.random(), "idx": i}
        for i in range(n)
    ]


def write_glue(root: Path) -> Path:
    """Write rows as the data set `nyu-mll/glue`, which `load_dataset` finds below ``root``."""
    folder = root / "nyu-mll" / "glue"
    head = ["---", "configs:"]
    for config in ("cola", "rte", "mnli", "stsb", "wnli"):
        head += [f"- config_name: {config}", "  data_files:"]
        tasks = [name for name in COLUMNS if name.partition("_")[0] == config]
        for task in (*tasks, None):
            split = "train" if task is None else SPLITS.get(task, "validation")
            file = Path(config, f"{split}.jsonl")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            lines = map(json.dumps, rows_of(task or config))
            (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            head += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*head, "---", ""]), encoding="utf-8")
    return root
