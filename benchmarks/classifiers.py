"""What a merge of classifiers costs: its eight heads beside one merge, its rows beside a `Trainer`.

    python benchmarks/classifiers.py

Writes a RoBERTa of random weights and eight fine-tunes of it, one for each task of GLUE but WNLI.
Then, in one process and in turn: the merge with one head, and with eight; rows of the lengths that
GLUE's have, answered by ``lm_eval --model merged-classifiers`` and by `Trainer.predict` on the same
model. Seconds of CPU, or seconds on a GPU; medians over --repeat rounds. README.md beside this file
says what the figures are.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from harness_adapters.lm_eval.classifiers.glue import GLUE
from harness_adapters.lm_eval.classifiers.model import MergedClassifiers
from merge_plugins import Recipe, load_classifiers, load_merged
from merge_plugins.parallel import accelerator

TASKS = {name: len(task.labels) or 1 for name, task in GLUE.items() if name != "wnli"}
WORDS = [f"w{i}" for i in range(5000)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    args = parser.parse_args()
    logging.disable_progress_bar()
    device = str(accelerator() or "cpu")
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        workdir = (args.workdir or Path(temporary)).resolve()
        create(workdir, args.layers, args.hidden)
        recipe = recipe_of(workdir)
        print("| what | it takes | beside it | ratio | goal |")
        print("| --- | --- | --- | --- | --- |")
        print(loading(recipe, device, args.repeat), flush=True)
        print(memory(recipe, device), flush=True)
        print(scoring(recipe, device, args, Path(temporary)), flush=True)


def create(workdir: Path, layers: int, hidden: int) -> None:
    """Write base and experts, unless they are there."""
    config = {
        "vocab_size": 50265,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    }
    if (workdir / "rte" / "config.json").is_file():
        return
    torch.manual_seed(0)
    base = RobertaForMaskedLM(RobertaConfig(**config))
    base.save_pretrained(workdir / "base")
    for name, n_labels in TASKS.items():
        expert = RobertaForSequenceClassification(RobertaConfig(**config, num_labels=n_labels))
        expert.roberta.load_state_dict(base.roberta.state_dict())
        with torch.no_grad():
            for weight in expert.roberta.parameters():
                weight.add_(0.001 * torch.randn_like(weight))
        expert.save_pretrained(workdir / name)
        tokenizer().save_pretrained(workdir / name)


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def recipe_of(workdir: Path) -> Recipe:
    return Recipe.from_mapping(
        {
            "merge_method": "task_arithmetic",
            "base_model": str(workdir / "base"),
            "models": [{"model": str(workdir / task), "task": task} for task in TASKS],
            "parameters": {"scaling_coefficient": 0.3},
        }
    )


def loading(recipe: Recipe, device: str, repeat: int) -> str:
    """Time the merge with one head, and with all."""
    place = {"device_map": {"": device}}
    one = recipe.for_task("cola")
    steps = {
        "one": lambda: load_merged(one, AutoModelForSequenceClassification, **place),
        "all": lambda: load_classifiers(recipe, **place),
    }
    times = in_turn(steps, device, repeat)
    return line("eight heads, s", times["all"], "one head, s", times["one"], "≤ 1.3")


def memory(recipe: Recipe, device: str) -> str:
    """Count the bytes of all weights that all models hold."""
    live = load_classifiers(recipe, device_map={"": device})
    models = [live.for_task(task)[0] for task in TASKS]
    weights = {w.untyped_storage().data_ptr(): w.nbytes for m in models for w in m.parameters()}
    first = models[0]
    encoder = sum(weight.nbytes for weight in first.base_model.parameters())
    whole = sum(weight.nbytes for model in models for weight in model.parameters())
    alone = encoder + whole - len(models) * encoder
    everything = sum(weights.values()) / 1e6
    return line("eight models, MB", everything, "encoder and heads, MB", alone / 1e6, "1.00")


def scoring(recipe: Recipe, device: str, args: argparse.Namespace, folder: Path) -> str:
    """Time the rows of one task, from texts to answers."""
    lm = MergedClassifiers.of(recipe, {"batch_size": args.batch_size, "device": device}, False)
    model, own_tokenizer = lm._models.for_task("qnli")
    rows = pairs(args.rows)
    requests = [
        Instance("loglikelihood", row, (row["question"], word), i, ("qnli", doc, 1))
        for doc, row in enumerate(rows)
        for i, word in enumerate((" yes", " no"))
    ]
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_eval_batch_size=args.batch_size,
        report_to=[],
        use_cpu=device == "cpu",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, processing_class=own_tokenizer)

    def by_trainer() -> Any:
        encoded = own_tokenizer(
            [row["question"] for row in rows], [row["sentence"] for row in rows], truncation=True
        )
        each = [{key: values[i] for key, values in encoded.items()} for i in range(len(rows))]
        return trainer.predict(each).predictions.argmax(-1)

    answers = [is_first for _, is_first in lm.loglikelihood(requests)]
    agree = [int(not first) for first in answers[::2]] == by_trainer().tolist()
    times = in_turn({"ours": lambda: lm.loglikelihood(requests), "trainer": by_trainer},
                    device, args.repeat)  # fmt: skip
    speeds = {name: len(rows) / seconds for name, seconds in times.items()}
    what = f"rows/s{'' if agree else ', other answers!'}"
    return line(what, speeds["ours"], "Trainer's rows/s", speeds["trainer"], "≥ 1")


def pairs(n: int) -> list[dict[str, str]]:
    """Make rows with questions of 5 to 20 words and sentences of 8 to 90, most of them short."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        length = least + int((most - least) * draw.random() ** 3)
        return " ".join(draw.choices(WORDS, k=length))

    return [{"question": text(5, 20), "sentence": text(8, 90)} for _ in range(n)]


def in_turn(steps: dict[str, Callable[[], Any]], device: str, repeat: int) -> dict[str, float]:
    """Run steps one after another, several times; the first round is not counted."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeat + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if device != "cpu":
                torch.accelerator.synchronize()
            times[name] += [clock() - start] if number else []
    return {name: statistics.median(each) for name, each in times.items()}


def line(what: str, figure: float, beside: str, other: float, goal: str) -> str:
    return f"| {what} | {figure:.2f} | {beside}: {other:.2f} | {figure / other:.2f} | {goal} |"


if __name__ == "__main__":
    main()
