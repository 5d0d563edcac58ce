"""Answers of a merge to prompts: what every adapter shares that generates text.

A recipe becomes a live model and its tokenizer once. Prompts go through it in left-padded batches
of similar length, and come back in their own order. A method that weighs its experts for each
request does so here too: weights come from each prompt, or from the name of the task.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.hf.versions import DTYPE
from merge_plugins.outputs.load import load_merged
from merge_plugins.recipe import Recipe, read_recipe
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import tokenizer_folder

DTYPES = ("float32", "bfloat16", "float16")


class Generator:
    """A merge that answers prompts. Its weights are merged when the first prompt is answered.

    ``dtype``: one of `DTYPES`; None: the merge's. ``device``: as torch spells it, or ``auto`` for
    all GPUs; None: a GPU where there is one.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int = 8,
        trust_remote_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise MergeError(f"batch_size is how many prompts run at once; got {batch_size}")
        if dtype is not None and dtype not in DTYPES:
            raise MergeError(f"dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
        self.recipe, self.batch_size = recipe, batch_size
        self._dtype = dtype
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._trust_remote_code = trust_remote_code

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the recipe asks for."""
        folder = str(tokenizer_folder(self.recipe))
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=self._trust_remote_code)

    @cached_property
    def model(self) -> Any:
        """The live model; made once."""
        options: dict[str, Any] = {}
        if self._dtype is not None:
            options[DTYPE] = getattr(torch, self._dtype)
        if self._device == "auto":
            options["device_map"] = "auto"
        elif self._device != "cpu":
            options["device_map"] = {"": self._device}
        return load_merged(self.recipe, trust_remote_code=self._trust_remote_code, **options)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        task: str | None = None,
        **generation: Any,
    ) -> list[str]:
        """Return what the model writes after each prompt, greedily, without the stop string.

        ``stop``: texts that end an answer. ``task``: what the benchmark is called, for a router
        that goes by names. ``generation``: arguments of transformers' ``generate``. Raises
        `MergeError` before any weight is read for a prompt that the model has no room for.
        """
        for name in ("num_return_sequences", "num_beam_groups", "return_dict_in_generate"):
            if generation.pop(name, 1) not in (1, False):
                raise MergeError(f"{name}= does not go with one answer per prompt; leave it out")
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        self._check(ids, max_new_tokens)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # as alpaca_eval's own
        answers = [""] * len(prompts)
        generation = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        if prompts:
            with (
                tqdm(total=len(prompts), desc="Generating", unit="prompt", delay=2) as progress,
                self._weighed(task),
                torch.inference_mode(),
            ):
                for start in range(0, len(order), self.batch_size):
                    batch = order[start : start + self.batch_size]
                    found = self._answers([ids[i] for i in batch], stop, generation)
                    for i, answer in zip(batch, found, strict=True):
                        answers[i] = answer
                    progress.update(len(batch))
        return answers

    def _check(self, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raise `MergeError` unless the merge is possible and has room for every answer."""
        if max_new_tokens < 1:
            raise MergeError(f"max_new_tokens is 1 or more; got {max_new_tokens}")
        for i, prompt in enumerate(ids):
            if not len(prompt):
                raise MergeError(f"prompt {i} is empty, and the tokenizer puts nothing in front")
        if "model" not in self.__dict__:
            open_merge(self.recipe)
        room, longest = self._context, max(map(len, ids), default=0)
        if room is not None and longest + max_new_tokens > room:
            place = next(i for i, prompt in enumerate(ids) if len(prompt) == longest)
            raise MergeError(
                f"the model sees {room} tokens at once; prompt {place} has {longest}, and "
                f"max_new_tokens={max_new_tokens} asks for more than the {room - longest} left"
            )

    @cached_property
    def _context(self) -> int | None:
        """How many tokens fit the model; None: its config does not say."""
        folder = str(model_folder(self.recipe.donor))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=self._trust_remote_code)
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def _weighed(self, task: str | None) -> contextlib.AbstractContextManager[None]:
        """Hold the weights of a task, where a router goes by its name."""
        routing = getattr(self.model, "routing", None)
        if routing is None or not routing.by_task:
            return contextlib.nullcontext()
        if task is None:
            raise RecipeError(
                f"{self.recipe.merge_method} routes by the name of a task here, and these prompts "
                "belong to none; choose another router"
            )
        held: contextlib.AbstractContextManager[None] = self.model.routed(
            routing.weigh([()], task)[0]
        )
        return held

    def _answers(
        self, ids: Sequence[Sequence[int]], stop: Sequence[str], generation: dict[str, Any]
    ) -> Iterator[str]:
        tokenizer, width = self.tokenizer, max(map(len, ids))
        known = [t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None]
        pad = known[0] if known else 0  # masked: any token does
        rows = torch.full((len(ids), width), pad)
        mask = torch.zeros_like(rows)
        for row, kept, prompt in zip(rows, mask, ids, strict=True):
            row[width - len(prompt) :] = torch.tensor(prompt)
            kept[width - len(prompt) :] = 1
        stopping = StoppingCriteriaList([Wrote(tokenizer, stop, width)] if stop else [])
        written = self.model.generate(
            input_ids=rows.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pad_token_id=pad,
            stopping_criteria=stopping,
            **generation,
        )
        for prompt, answer in zip(ids, written[:, width:].tolist(), strict=True):
            yield _before(self._text(prompt, self._ended(answer)), stop)

    def _ended(self, answer: list[int]) -> list[int]:
        """Return an answer up to its end token: what follows is padding."""
        ends = self.model.generation_config.eos_token_id
        known = {*ends} if isinstance(ends, list) else {ends}
        return answer[: next((i + 1 for i, token in enumerate(answer) if token in known), None)]

    def _text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Return what the answer adds to the prompt's text.

        Decoded alone it would lose its first space with tokenizers that mark words by the space
        before them, and Python code its indentation.
        """
        before, both, alone = (
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in ([*prompt], [*prompt, *answer], [*answer])
        )
        return str(both[len(before) :] if both.startswith(before) else alone)


class Wrote(StoppingCriteria):
    """Ends each row that has written one of some texts after its prompt."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_width: int) -> None:
        self._tokenizer, self._texts, self._start = tokenizer, texts, prompt_width
        # A token may be one byte of a letter; before the first of them, some tokens of context.
        self._window = max(len(text.encode()) for text in texts) + 8

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return which rows are done: bool [batch]."""
        start = max(self._start, input_ids.shape[1] - self._window)
        tails = self._tokenizer.batch_decode(input_ids[:, start:])
        done = [any(text in tail for text in self._texts) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


def _before(answer: str, stop: Sequence[str]) -> str:
    ends = [answer.find(text) for text in stop if text in answer]
    return answer[: min(ends, default=None)]


def add_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the recipe, the file to write, and how to generate."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, its folder, or the short form method=…"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once (8)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, help=f"({max_new_tokens})"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: the merge's")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, auto; default: a GPU if there is one")
    parser.add_argument("--trust-remote-code", action="store_true")


def generator(options: argparse.Namespace) -> Generator:
    """Return the generator that a command line asks for, once its output file can be written."""
    new_file(options.out)
    if options.limit is not None and options.limit < 1:
        raise MergeError(f"--limit is how many rows to answer, 1 or more; got {options.limit}")
    return Generator(
        read_recipe(options.recipe),
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
        trust_remote_code=options.trust_remote_code,
    )


def new_file(file: Path) -> None:
    """Raise `MergeError` if a file is there already: it may be of another merge."""
    if file.exists():
        raise MergeError(f"{file} exists; name another file, or remove it")
    if not file.absolute().parent.is_dir():
        raise MergeError(f"{file}: there is no folder {file.parent}; make it first")


def write(file: Path, text: str) -> None:
    """Write a file in full or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    except OSError as exc:
        raise MergeError(f"{file} was not written: {exc}") from exc
    finally:
        unfinished.unlink(missing_ok=True)


def exit_status(run: Callable[[], int]) -> int:
    """Run a command; say what we refuse in a line, without a traceback."""
    try:
        return run()
    except MergeError as exc:
        print(f"merge-plugins: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("merge-plugins: interrupted", file=sys.stderr)
        return 130
