"""Score merges with bigcode-evaluation-harness, several in one run, each made as it loads.

    accelerate launch -m harness_adapters.bigcode --harness PATH --model merge.yaml,other.yaml
        --tasks mbpp --allow_code_execution …

``PATH`` is a checkout of the harness. Its own ``parse_args`` reads the rest of the arguments, its
own ``Evaluator`` generates and scores; its ``main``, which loads one checkpoint by name, is
replaced. Every file written is named after the merge's method and digest.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from harness_adapters.bigcode.harness import Harness, complete, named, of_task, prompted, write
from harness_adapters.ending import exit_status
from merge_plugins import identity
from merge_plugins.cli.arguments import add_plugin
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.hf.versions import DTYPE
from merge_plugins.outputs.load import load_merged
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import tokenizer_folder

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODEL_TYPES = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
REFUSED = {
    "revision": "write org/name@revision in the recipe",
    "peft_model": "write it in a recipe, as {model: <this recipe>, lora: <adapter>}",
    "use_auth_token": "log in, or set the environment variable HF_TOKEN, which every source obeys",
    "check_references": "it scores the references; use the harness's own main.py",
}
"""Flags that would score something other than the merge, and what to do instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Score every recipe on every task; return the exit status, 1 after a `MergeError`."""
    parser = argparse.ArgumentParser(
        prog="harness_adapters.bigcode", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--harness", required=True, type=Path)
    add_plugin(parser)
    options, rest = parser.parse_known_args(argv)
    return exit_status(lambda: _run(options, rest))


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    load_plugins(options.plugin)
    harness = Harness.load(options.harness)
    args = harness.parse_args(rest)
    check(args)
    evaluate(harness, args)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise `RecipeError` for a flag that no merge supports."""
    for name, instead in REFUSED.items():
        if getattr(args, name, None):
            raise RecipeError(f"--{name} does not go with a merge: {instead}")
    if args.load_in_8bit and args.load_in_4bit:
        raise RecipeError("--load_in_8bit and --load_in_4bit: keep one")
    for name, known in (("precision", PRECISIONS), ("modeltype", MODEL_TYPES)):
        if getattr(args, name) not in known:
            raise RecipeError(f"--{name} is {' or '.join(known)}; got {getattr(args, name)}")


def evaluate(harness: Harness, args: argparse.Namespace) -> None:
    """Generate and score answers of every recipe in ``--model`` on every task."""
    recipes = read_recipes(args.model, args.trust_remote_code)
    tasks = harness.tasks(args)
    accelerator = Accelerator()
    for recipe in recipes:
        digest, label = identity.digest(recipe), identity.label(recipe)
        own = for_label(args, label)
        stored = _stored(own, label, tasks, len(recipes))
        model = tokenizer = None
        if not own.load_generations_path:
            model = load(recipe, own, accelerator)
            tokenizer = load_tokenizer(recipe, own)
        evaluator = complete(harness.main.Evaluator)(accelerator, model, tokenizer, own)
        with prompted(harness, own, tokenizer):
            scores = {task: _score(evaluator, task, started) for task, started in stored.items()}
        if accelerator.is_main_process and not own.generation_only:
            merge = {"recipe": recipe.as_dict(), "digest": digest}
            results = {**scores, "config": vars(own), "merge": merge}
            write(Path(own.metric_output_path), results, indent=2)
            print(json.dumps({label: scores}, indent=2))
        del evaluator, model
        gc.collect()  # a model has reference cycles; the next one needs its memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        accelerator.wait_for_everyone()


def read_recipes(given: str, trust_remote_code: bool = False) -> list[Recipe]:
    """Read the recipes of ``--model``: files or folders, with commas between them."""
    names = [given] if Path(given).exists() else given.split(",")
    recipes = [Recipe.load(name).trusting(trust_remote_code) for name in names]
    first: dict[str, str] = {}
    for name, recipe in zip(names, recipes, strict=True):
        other = first.setdefault(identity.digest(recipe), name)
        if other != name or names.count(name) > 1:
            raise RecipeError(f"--model: {other} and {name} are the same merge; name it once")
    return recipes


def for_label(args: argparse.Namespace, label: str) -> argparse.Namespace:
    """Copy the harness's arguments, with file names of the merge with this label."""
    own = copy.copy(args)
    own.save_generations = args.save_generations or args.generation_only  # else they are lost
    for name in ("save_generations_path", "metric_output_path"):
        setattr(own, name, named(getattr(args, name), label, args))
    return own


def _stored(
    args: argparse.Namespace, label: str, tasks: Sequence[str], n_recipes: int
) -> dict[str, Any]:
    """Read each task's generations that ``--save_every_k_tasks`` wrote in an interrupted run.

    Raises `RecipeError` for generations that are not of the merge with this label.
    """
    paths = list(getattr(args, "load_generations_intermediate_paths", None) or [])
    for path in filter(None, [*paths, args.load_generations_path]):
        if n_recipes > 1:
            raise RecipeError(f"{path} is one recipe's: give --model one recipe")
        if label not in Path(path).name:
            raise RecipeError(
                f"{path} is not named after {label}, so it may hold another merge's answers. "
                "The harness's own main.py scores whatever it is given"
            )
    if paths and len(paths) != len(tasks):
        raise RecipeError(
            f"--load_generations_intermediate_paths: {len(paths)} files for {len(tasks)} tasks, "
            f"{', '.join(tasks)}; name one for each, in this order"
        )
    generations = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    return dict(zip(tasks, generations or [None] * len(tasks), strict=True))


def _score(evaluator: Any, task: str, started: Any) -> Any:
    """Score one task, in the main process; None with ``--generation_only``, which only writes."""
    args = evaluator.args
    if not args.generation_only:
        return evaluator.evaluate(task, intermediate_generations=started)
    generations, references = evaluator.generate_text(task, intermediate_generations=started)
    if evaluator.accelerator.is_main_process:
        path = of_task(args.save_generations_path, task)
        evaluator.save_json_files(generations, references, path, f"references_{task}.json")
    return None


def load(recipe: Recipe, args: argparse.Namespace, accelerator: Accelerator) -> Any:
    """Load the merged model on this process's device; with ``--max_memory_per_gpu``, on all."""
    given: dict[str, Any] = {DTYPE: PRECISIONS[args.precision]}
    if args.load_in_8bit or args.load_in_4bit:
        bits = "load_in_8bit" if args.load_in_8bit else "load_in_4bit"
        given["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            **{bits: True}, bnb_4bit_compute_dtype=torch.float16
        )
    if not args.max_memory_per_gpu:
        given["device_map"] = {"": accelerator.device}
    else:
        given["device_map"] = "auto"
        if args.max_memory_per_gpu != "auto":
            gpus = range(accelerator.num_processes)
            given["max_memory"] = dict.fromkeys(gpus, args.max_memory_per_gpu)
            given["offload_folder"] = "offload"
    auto_class = MODEL_TYPES[args.modeltype]
    return load_merged(recipe, auto_class, trust_remote_code=args.trust_remote_code, **given)


def load_tokenizer(recipe: Recipe, args: argparse.Namespace) -> Any:
    """Load the merge's tokenizer, configured as in the harness's own ``main``."""
    sides = {"padding_side": "left"}
    if not args.left_padding:
        sides = {"padding_side": "right", "truncation_side": "left"}
    folder = tokenizer_folder(recipe)
    trust = args.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, **sides)
    if not (tokenizer.eos_token or tokenizer.bos_token):
        raise MergeError(f"{folder}: its tokenizer has no eos_token and no bos_token")
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.bos_token
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
