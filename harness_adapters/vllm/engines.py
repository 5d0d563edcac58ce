"""Live engines of vLLM as a swap of weights needs them, and that of this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from merge_plugins.errors import MergeError

Prompts = Sequence[Sequence[int]]
"""Prompts as token ids."""
FIRST = "default"
"""vLLM's name for the weights that an engine was started with."""


class Engine(Protocol):
    """What a swap needs of an engine."""

    @property
    def release(self) -> str:
        """The release of vLLM."""

    @property
    def place(self) -> str:
        """Where it runs: kind of device, or address."""

    @property
    def config(self) -> Any:
        """Return vLLM's `VllmConfig`, or the same as mappings."""

    def call(self, method: str, **arguments: Any) -> None:
        """Call a method of each worker."""

    def between_requests(self) -> AbstractContextManager[None]:
        """Let running requests finish, run none within, and forget what is cached afterwards.

        After an error no further request is run.
        """

    def halt(self) -> None:
        """Run no further request, where others may send any."""

    def weights(self) -> str | None:
        """Return the name of the weights; None if they are those that it was started with."""

    def label(self, name: str) -> None:
        """Name the weights, in releases of vLLM that have a name for them."""

    def log_probabilities(self, prompts: Prompts) -> list[list[float]]:
        """Score each token of each prompt but the first."""


class InProcess:
    """The engine of an `vllm.LLM`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.config = llm.llm_engine.vllm_config

    @property
    def release(self) -> str:
        """The release of vLLM."""
        import vllm

        return str(vllm.__version__)

    @property
    def place(self) -> str:
        """The name of the device."""
        from vllm.platforms import current_platform

        return str(current_platform.get_device_name())

    def call(self, method: str, **arguments: Any) -> None:
        """Call a method of each worker."""
        self._llm.collective_rpc(method, kwargs=arguments)

    @contextmanager
    def between_requests(self) -> Iterator[None]:
        """Refuse while requests run, which only another thread can have sent; then clear caches."""
        if self._llm.llm_engine.has_unfinished_requests():
            raise MergeError("requests are running; swap when LLM.generate has returned")
        yield
        if not self._llm.reset_prefix_cache():
            raise MergeError("vLLM did not reset its prefix cache")

    def halt(self) -> None:
        """Do nothing: requests come from whoever is told that the swap was wrong."""

    def weights(self) -> str | None:
        """Return the name of the weights; None if they are those that it was started with."""
        found = getattr(self._llm.llm_engine, "get_weight_version", lambda: FIRST)()
        return None if found == FIRST else str(found)

    def label(self, name: str) -> None:
        """Name the weights, in releases of vLLM that have a name for them."""
        if hasattr(self._llm.llm_engine, "set_weight_version"):
            self._llm.llm_engine.set_weight_version(name)

    def log_probabilities(self, prompts: Prompts) -> list[list[float]]:
        """Score each token of each prompt but the first."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(tokens, sampling, use_tqdm=False)
        return [
            [held[token].logprob for token, held in scored(prompt, output.prompt_logprobs)]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]


def scored(prompt: Sequence[int], held: Sequence[Any]) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    """Pair each token but the first with what it was scored."""
    return zip(prompt[1:], held[1:], strict=True)
