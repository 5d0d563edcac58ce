"""Tiny BERT, RoBERTa and DeBERTa classifiers of four tasks, with real tokenizers and labelled rows.

All of one kind come from one base, as fine-tunes do: their encoders differ from it by noise, and
each has a head of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from families import drift, seeded
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

SIZE: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
DEBERTA: Mapping[str, Any] = {  # as DeBERTa-v3 has it
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
KINDS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("Bert", "Model", {"pad_token_id": 0}),
    "roberta": ("Roberta", "ForMaskedLM", {"pad_token_id": 1, "type_vocab_size": 1}),
    "deberta": ("DebertaV2", "Model", {"pad_token_id": 0, **DEBERTA}),
}
"""Prefix of the classes, the class of the base as hubs publish it, and settings, by kind."""
TASKS: Mapping[str, Sequence[str]] = {
    "cola": ("unacceptable", "acceptable"),
    "rte": ("entailment", "not_entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "stsb": ("score",),
}
"""Labels of each task; one is the number to predict."""
WORDS = (
    *("a", "the", "cat", "dog", "bird", "sleeps", "eats", "sings", "red", "blue", "small", "big"),
    *("quickly", "never", "always", "not"),
)


def write_experts(kind: str, root: Path, tasks: Sequence[str] = tuple(TASKS)) -> dict[str, str]:
    """Write a base and a classifier of each task below a folder; return the folders by name."""
    prefix, base_class, settings = KINDS[kind]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZE, **settings})
    seeded(config, getattr(transformers, f"{prefix}{base_class}")).save_pretrained(root / "base")
    tokenizer = tokenizer_of(kind)
    tokenizer.save_pretrained(root / "base")
    expert_class = getattr(transformers, f"{prefix}ForSequenceClassification")
    for number, task in enumerate(tasks, 1):
        torch.manual_seed(number)
        labels = dict(enumerate(TASKS[task]))
        model = expert_class.from_pretrained(root / "base", id2label=labels, num_labels=len(labels))
        drift(model, 0.1).save_pretrained(root / task)
        tokenizer.save_pretrained(root / task)
    return {name: str(root / name) for name in ("base", *tasks)}


def tokenizer_of(kind: str) -> Any:
    """Train the tokenizer that models of that kind have: WordPiece, byte-level BPE, unigrams."""
    text = [" ".join(WORDS)] * 4
    if kind == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        bpe = trainers.BpeTrainer(vocab_size=128, special_tokens=special, show_progress=False)
        backend.train_from_iterator(text, bpe)
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        named = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
        read = ["input_ids", "attention_mask"]
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if kind == "bert":
            backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            pieces = trainers.WordPieceTrainer(
                vocab_size=128, special_tokens=special, show_progress=False
            )
            backend.train_from_iterator(text, pieces)
        else:
            known = [(word, 0.0) for word in special] + [(f"▁{word}", -1.0) for word in WORDS]
            backend = Tokenizer(models.Unigram(known, unk_id=1))
            backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        read = ["input_ids", "token_type_ids", "attention_mask"]
    pad, unknown = ("<pad>", "<unk>") if kind == "roberta" else ("[PAD]", "[UNK]")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        model_input_names=read,
        model_max_length=SIZE["max_position_embeddings"] - 2,
        **named,
    )


def rows_of(task: str, n: int = 6) -> list[dict[str, Any]]:
    """Make labelled rows of different lengths; all but cola are about two texts."""
    random = torch.Generator().manual_seed(len(task) + sum(map(ord, task)))

    def text() -> str:
        length = int(torch.randint(2, 9, (), generator=random))
        drawn = torch.randint(len(WORDS), (length,), generator=random)
        return " ".join(WORDS[int(i)] for i in drawn)

    rows = []
    for number in range(n):
        row: dict[str, Any] = {"prompt": text()}
        if task != "cola":
            row["response"] = text()
        n_labels = len(TASKS[task])
        row["label"] = number % n_labels if n_labels > 1 else round(5 * number / n, 2)
        rows.append(row)
    return rows


def write_rows(task: str, folder: Path, n: int = 6) -> str:
    """Write rows of a task as JSONL; return the file."""
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task, n)))
    return str(file)


def inputs_of(tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tokenize one row, without padding: tensors [1, length]."""
    found = tokenizer(row["prompt"], row.get("response"), return_tensors="pt")
    return {name: found[name] for name in tokenizer.model_input_names}
