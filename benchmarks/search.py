"""What one more candidate of a search costs, next to mergekit-yaml and lm_eval --model hf.

    python benchmarks/search.py --mergekit venv/bin/mergekit-yaml
    python benchmarks/search.py --mergekit venv/bin/mergekit-yaml --layers 24

By default on the demo's family; with --layers on a family of random weights, 24 layers make 0.5 B.
CPU seconds, since machines are busy, less those that answer the requests, which both ways need. The
other way's are of separate programs, once. Bytes are those that the process writes by any call,
progress bars not counted. README.md beside this file says what the figures are.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
import yaml
from steps import create
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from harness_adapters.lm_eval import Evaluator
from merge_plugins import Recipe
from merge_plugins.demo import family

METHODS = ("linear", "task_arithmetic", "ties")
REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
TASK = "search_benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of a venv; only run")
    parser.add_argument("--layers", type=int, help="of a family of random weights")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--documents", type=int, default=4, help="of each task")
    parser.add_argument("--repeat", type=int, default=5, help="candidates of each kind")
    parser.add_argument("--candidates", type=int, default=100, help="for memory and bytes")
    parser.add_argument("--workdir", type=Path, help="kept, for the next run (default: temporary)")
    args = parser.parse_args()
    hf_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as temporary:
        bench = Bench(args, (args.workdir or Path(temporary)).resolve())
        print("| method | mergekit + lm_eval hf | one more | ÷ | one parameter alone | ÷ |")
        print("| --- | --- | --- | --- | --- | --- |")
        for method in args.methods:
            print(bench.row(method), flush=True)
        print(f"\n{bench.many(args.methods[-1], args.candidates)}")


class Bench:
    """A family of models, tasks for it, and an evaluator of these."""

    def __init__(self, args: argparse.Namespace, workdir: Path) -> None:
        self.args, self.workdir = args, workdir
        workdir.mkdir(parents=True, exist_ok=True)
        if args.layers is None:
            shipped = family()
            self.base = shipped["base"]
            self.experts = [shipped["math"], shipped["code"]]
            self.tasks = ["merge_demo_math", "merge_demo_code"]
        else:
            self.base = workdir / "base"
            self.experts = [workdir / f"expert_{i}" for i in range(2)]
            if not self.base.exists():
                create(str(workdir), str(args.layers), "2")
                for model in (self.base, *self.experts):
                    write_tokenizer(model)
            self.tasks = [write_task(workdir / "tasks")]
        self.evaluator = Evaluator(
            self.tasks,
            limit=args.documents,
            include_path=str(workdir / "tasks") if args.layers else None,
            device="cpu",
            progress=False,
            bootstrap_iters=0,
        )

    def row(self, method: str) -> str:
        """Time one method; the first candidate, which loads the model, is not counted."""
        values = iter(random.Random(method).sample(range(300, 700), 2 * self.args.repeat + 1))
        first = self.recipe(method, next(values))
        self.evaluator.score(first)
        other = [self.cost(self.recipe(method, v, v / 1000)) for v, _ in self.times(values)]
        self.evaluator.score(self.recipe(method, 500))
        alone = [self.cost(self.recipe(method, v)) for v, _ in self.times(values)]
        answers = statistics.median(seconds for _, seconds in other)
        both = (statistics.median(total - part for total, part in each) for each in (other, alone))
        theirs = self.of_two_programs(method, first) - answers if self.args.mergekit else None
        cells = [method, "" if theirs is None else f"{theirs:.1f}"]
        for ours in both:
            cells += [f"{ours:.3f}", "" if theirs is None else f"{ours / theirs:.4f}"]
        return f"| {' | '.join(cells)} |"

    def times(self, values: Iterator[int]) -> Iterator[tuple[int, int]]:
        return zip(values, range(self.args.repeat), strict=False)

    def cost(self, recipe: Recipe) -> tuple[float, float]:
        """CPU seconds of a candidate, and those of them that answer its requests."""
        lm, spent = self.evaluator.live(self.recipe_before), [0.0]
        originals = {name: getattr(lm, name) for name in REQUESTS}
        for name, original in originals.items():
            setattr(lm, name, timed(original, spent))
        start = time.process_time()
        self.evaluator.score(recipe)
        total = time.process_time() - start
        for name in originals:
            delattr(lm, name)
        self.recipe_before = recipe
        return total, spent[0]

    def recipe(self, method: str, value: int, density: float = 0.5) -> Recipe:
        """Build a candidate: ``value`` is of a parameter that needs no measuring again."""
        found = Recipe.from_mapping(self.mapping(method, value / 1000, density))
        self.recipe_before = getattr(self, "recipe_before", found)
        return found

    def mapping(self, method: str, value: float, density: float) -> dict[str, Any]:
        weights = {"linear": (value, 1 - value)}.get(method, (1.0, 1.0))
        shared = {"ties": {"density": density, "lambda": value}}
        shared |= {"task_arithmetic": {"lambda": value}}
        return {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [
                {"model": str(expert), "parameters": {"weight": weight}}
                for expert, weight in zip(self.experts, weights, strict=True)
            ],
            **({"parameters": shared[method]} if method in shared else {}),
            "dtype": "bfloat16",
        }

    def of_two_programs(self, method: str, recipe: Recipe) -> float:
        """CPU seconds of a candidate by mergekit-yaml, then lm_eval --model hf."""
        file, folder = self.workdir / "merge.yaml", self.workdir / "merged"
        mapping = self.mapping(method, 0.4, 0.5)
        if method == "linear":
            del mapping["base_model"]
        file.write_text(yaml.safe_dump(mapping))
        tasks = ("--include_path", str(self.workdir / "tasks")) if self.args.layers else ()
        lm_eval = (Path(sys.executable).with_name("lm_eval"), "--model", "hf", "--device", "cpu")
        model = ("--model_args", f"pretrained={folder}", "--tasks", ",".join(self.tasks))
        limit = ("--limit", str(self.args.documents), *tasks)
        return cpu_of(self.args.mergekit, file, folder) + cpu_of(*lm_eval, *model, *limit)

    def many(self, method: str, n: int) -> str:
        """Go through many candidates: memory, and bytes written."""
        start, memory = written(), []
        for i in range(n):
            self.evaluator.score(self.recipe(method, 300 + i, 0.2 + i / 500))
            memory.append(anonymous())
        early, late = memory[n // 10], memory[-1]
        return (
            f"{n} candidates of {method}: {(written() - start) / 1e6:.3f} MB written; memory "
            f"{early / 1e6:.1f} MB after {n // 10 + 1}, {late / 1e6:.1f} MB after {n} "
            f"({late / early - 1:+.1%})"
        )


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that parts words, in place of one that only has their names."""
    vocabulary = {f"token{i}": i for i in range(96_000)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="token0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "token0", "eos_token": "token1", "pad_token": "token1"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def write_task(folder: Path) -> str:
    """Write a task in the words of the random family's tokenizer."""
    folder.mkdir(exist_ok=True)
    words = random.Random(0)
    rows = [
        {"text": " ".join(f"token{words.randrange(96_000)}" for _ in range(48)), "label": i % 2}
        for i in range(32)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / f"{TASK}.yaml").write_text(
        f"task: {TASK}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\n"
        "doc_to_choice: [token2, token3]\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    return TASK


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            spent[0] += time.process_time() - start

    return run


def cpu_of(*command: str | Path) -> float:
    """Run a program with one thread, as ours; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def written() -> int:
    """Count the bytes that this process has written by any call."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def anonymous() -> int:
    """Return the private memory of this process, without pages of files, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Anonymous")))


if __name__ == "__main__":
    main()
