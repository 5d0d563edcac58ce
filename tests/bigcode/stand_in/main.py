"""Stands in for bigcode-evaluation-harness where there is no checkout of it.

It generates with real models and runs real programs. It has what `harness_adapters.bigcode` uses of
the harness, under the same names: arguments, tasks, `Evaluator`, names and formats of files.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from bigcode_eval.evaluator import Evaluator
from bigcode_eval.tasks import ALL_TASKS
from transformers import AutoModelForCausalLM, AutoTokenizer

SWITCHES = (
    *("trust_remote_code", "load_in_8bit", "load_in_4bit", "left_padding", "save_generations"),
    *("allow_code_execution", "generation_only", "save_references", "check_references"),
    "use_auth_token",
)
TEXTS = {
    **{"model": "codeparrot/codeparrot-small", "modeltype": "causal", "precision": "fp32"},
    **{"peft_model": None, "revision": None, "tasks": None, "prompt": "prompt"},
    **{"load_generations_path": None, "max_memory_per_gpu": None},
    **{"metric_output_path": "evaluation_results.json"},
    **{"save_generations_path": "generations.json", "save_references_path": "references.json"},
}
NUMBERS = {
    **{"batch_size": 1, "max_length_generation": 512, "limit": None, "limit_start": 0},
    **{"save_every_k_tasks": -1, "n_samples": 1, "seed": 0},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    for name, text in TEXTS.items():
        parser.add_argument(f"--{name}", default=text)
    for name, number in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--do_sample", type=lambda text: text == "True", default=True)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--load_generations_intermediate_paths", nargs="*")
    return parser.parse_args()


def pattern_match(patterns: list[str], names: list[str]) -> list[str]:
    return list({name for pattern in patterns for name in fnmatch.filter(names, pattern)})


def main() -> None:
    args = parse_args()
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(
        args.model,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        torch_dtype=getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[args.precision]),
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    evaluator = Evaluator(accelerator, model, tokenizer, args)
    names = pattern_match(args.tasks.split(","), ALL_TASKS)
    results = {name: evaluator.evaluate(name) for name in names}
    text = json.dumps({**results, "config": vars(args)}, indent=2)
    Path(args.metric_output_path).write_text(text)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
