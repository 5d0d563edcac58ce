"""How lm-eval makes requests of documents: few-shot examples, chat template, seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Prompting:
    """How requests are made of documents: lm-eval's options, by its names, with its defaults."""

    num_fewshot: int | None = None
    gen_kwargs: str | Mapping[str, Any] | None = None
    limit: float | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    """None: with a chat template."""
    system_instruction: str | None = None
    random_seed: int | None = 0
    numpy_random_seed: int | None = 1234
    torch_random_seed: int | None = 1234
    fewshot_random_seed: int | None = 1234

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Seed every generator that `lm_eval.simple_evaluate` seeds; for the block alone."""
        before = Generators.now()
        if self.random_seed is not None:
            random.seed(self.random_seed)
        if self.numpy_random_seed is not None:
            np.random.seed(self.numpy_random_seed)
        if self.torch_random_seed is not None:
            torch.manual_seed(self.torch_random_seed)  # on every device
        try:
            yield
        finally:
            before.restore(self)

    @property
    def for_requests(self) -> Mapping[str, Any]:
        """Arguments that `lm_eval.evaluate` hands on to each task."""
        chat, turns = self.apply_chat_template, self.fewshot_as_multiturn
        return {
            "system_instruction": self.system_instruction,
            "apply_chat_template": chat,
            "fewshot_as_multiturn": bool(chat) if turns is None else turns,
        }


@dataclass(frozen=True)
class Generators:
    """States of the global random generators, from which a task may draw when it makes requests."""

    python: Any
    numpy: Any
    torch: torch.Tensor

    @classmethod
    def now(cls) -> Generators:
        """Take the states that the generators have."""
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state())

    def restore(self, prompting: Prompting) -> None:
        """Give the generators that are seeded these states again."""
        if prompting.random_seed is not None:
            random.setstate(self.python)
        if prompting.numpy_random_seed is not None:
            np.random.set_state(self.numpy)
        if prompting.torch_random_seed is not None:
            torch.set_rng_state(self.torch)
