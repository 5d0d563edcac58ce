"""Generate a merge's answers to prompts: the base of alpaca_eval, human_eval and mbpp.

The live model and its tokenizer are loaded once. Prompts run in left-padded batches of similar
length; answers are returned in the order of the prompts. A routed method weighs its experts here
too, by each prompt or by the name of the task.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from harness_adapters.options import check_device
from merge_plugins.cli.arguments import add_plugin
from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.folders import write_whole
from merge_plugins.hf.versions import DTYPE
from merge_plugins.outputs.load import load_merged
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import Recipe, read_recipe
from merge_plugins.recipe.dtypes import dtype_name
from merge_plugins.sources.models import model_folder
from merge_plugins.tokenizer import tokenizer_folder

DTYPES = ("float32", "bfloat16", "float16")


class Generator:
    """Generate a merge's answers. Weights are merged when the first prompt is answered.

    ``dtype``: torch's name of one; None: the merge's. ``device``: a torch device, or ``auto`` for
    all GPUs; None: a GPU if there is one.
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
        if dtype is not None:
            dtype_name(dtype)
        if device is not None:
            check_device(device)
        self.recipe, self.batch_size = recipe.trusting(trust_remote_code), batch_size
        self._dtype = dtype
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._trust_remote_code = trust_remote_code

    @cached_property
    def tokenizer(self) -> Any:
        """The merge's tokenizer."""
        folder = str(tokenizer_folder(self.recipe))
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=self._trust_remote_code)

    @cached_property
    def model(self) -> Any:
        """The live model, merged on first access."""
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
        """Generate an answer to each prompt, greedily by default, without its stop string.

        ``stop``: texts that end an answer. ``task``: the benchmark's name, for a router that
        weighs by task. ``generation``: arguments of transformers' ``generate``. Raises
        `MergeError`, before any weight is read, for a prompt too long for the model's context.
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
                    written = self._answers([ids[i] for i in batch], stop, generation)
                    for i, answer in zip(batch, written, strict=True):
                        answers[i] = answer
                    progress.update(len(batch))
        return answers

    def _check(self, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raise `MergeError` unless the merge is possible and its context fits every answer."""
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
        """Context length in tokens; None if the config has none."""
        folder = str(model_folder(self.recipe.donor))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=self._trust_remote_code)
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def _weighed(self, task: str | None) -> contextlib.AbstractContextManager[None]:
        """Return a context with the expert weights of a task, if the router weighs by task."""
        routing = getattr(self.model, "routing", None)
        if routing is None or not routing.by_task:
            return contextlib.nullcontext()
        if task is None:
            raise RecipeError(
                f"{self.recipe.merge_method} routes by the name of a task here, and these prompts "
                "belong to none; choose another router"
            )
        context: contextlib.AbstractContextManager[None] = self.model.routed(
            routing.weigh([()], task)[0]
        )
        return context

    def _answers(
        self, ids: Sequence[Sequence[int]], stop: Sequence[str], generation: dict[str, Any]
    ) -> Iterator[str]:
        tokenizer, width = self.tokenizer, max(map(len, ids))
        special = [t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None]
        pad = special[0] if special else 0  # masked: any token does
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
        """Cut an answer after its first end token: what follows is padding."""
        ends = self.model.generation_config.eos_token_id
        ends = {*ends} if isinstance(ends, list) else {ends}
        return answer[: next((i + 1 for i, token in enumerate(answer) if token in ends), None)]

    def _text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Decode an answer: the text that it adds to the prompt's.

        Tokenizers that mark words by the space before them drop the first space of an answer that
        is decoded alone, and so the indentation of Python code.
        """
        before, both, alone = (
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in ([*prompt], [*prompt, *answer], [*answer])
        )
        return str(both[len(before) :] if both.startswith(before) else alone)


class Wrote(StoppingCriteria):
    """Stop each row once one of the given texts occurs after its prompt."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_width: int) -> None:
        self._tokenizer, self._texts, self._start = tokenizer, texts, prompt_width
        # A token may be one byte of a letter; eight more as context before the first of them.
        self._window = max(len(text.encode()) for text in texts) + 8

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Compute which rows are done: bool [batch]."""
        start = max(self._start, input_ids.shape[1] - self._window)
        tails = self._tokenizer.batch_decode(input_ids[:, start:])
        done = [any(text in tail for text in self._texts) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


def _before(answer: str, stop: Sequence[str]) -> str:
    ends = [answer.find(text) for text in stop if text in answer]
    return answer[: min(ends, default=None)]


def add_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the arguments of a command that generates: recipe, output file, generation options."""
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
    add_plugin(parser)


def generator(options: argparse.Namespace) -> Generator:
    """Build the generator of a command line, after a check that its output file is new."""
    new_file(options.out)
    if options.limit is not None and options.limit < 1:
        raise MergeError(f"--limit is how many rows to answer, 1 or more; got {options.limit}")
    load_plugins(options.plugin)
    return Generator(
        read_recipe(options.recipe),
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
        trust_remote_code=options.trust_remote_code,
    )


def new_file(file: Path) -> None:
    """Raise `MergeError` if a file exists, as it may be another merge's, or its folder does not."""
    if file.exists():
        raise MergeError(f"{file} exists; name another file, or remove it")
    if not file.absolute().parent.is_dir():
        raise MergeError(f"{file}: there is no folder {file.parent}; make it first")


def write(file: Path, text: str) -> None:
    """Write a file in full or not at all; raises `MergeError` where that is impossible."""
    try:
        write_whole(file, text)
    except OSError as exc:
        raise MergeError(f"{file} was not written: {exc}") from exc
