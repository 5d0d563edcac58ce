"""The engine of a running ``vllm serve``, by vLLM's own endpoints."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from harness_adapters.vllm.engines import FIRST, Prompts, scored
from merge_plugins.errors import MergeError

TIMEOUT = 3600.0
"""Seconds: merging into a large model takes minutes."""


class Server:
    """The engine of ``vllm serve`` with VLLM_SERVER_DEV_MODE=1, by vLLM's own endpoints."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self._address = address.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.place = self._address

    @cached_property
    def release(self) -> str:
        """The release of vLLM."""
        return str(self._get("/version")["version"])

    @cached_property
    def config(self) -> Any:
        """Return vLLM's config, as mappings."""
        return self._get("/server_info?config_format=json")["vllm_config"]

    @property
    def folder(self) -> str:
        """The folder that it was started with."""
        return str(self.config["model_config"]["model"])

    @cached_property
    def model(self) -> str:
        """The model's name in requests."""
        return str(self._get("/v1/models")["data"][0]["id"])

    def call(self, method: str, **arguments: Any) -> None:
        """Call a method of each worker."""
        self._post("/collective_rpc", {"method": method, "kwargs": arguments})

    @contextmanager
    def between_requests(self) -> Iterator[None]:
        """Pause when running requests have finished; go on, with empty caches, after success."""
        self._post("/pause?mode=wait")
        yield
        if not self._post("/reset_prefix_cache").get("success", True):
            raise MergeError("vLLM did not reset its prefix cache; the server stays paused")
        self._post("/resume")

    def halt(self) -> None:
        """Pause: requests wait until the server is restarted."""
        self._post("/pause?mode=wait")

    def weights(self) -> str | None:
        """Return the name of the weights; None if they are those that it was started with."""
        found = FIRST
        with suppress(NoSuchPathError):
            found = self._get("/weight_info")["weight_version"]
        return None if found == FIRST else str(found)

    def label(self, name: str) -> None:
        """Name the weights, in releases of vLLM that have a name for them."""
        with suppress(NoSuchPathError):
            self._post("/update_weight_version", {"new_version": name})

    def log_probabilities(self, prompts: Prompts) -> list[list[float]]:
        """Score each token of each prompt but the first."""
        asked = {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 0}
        choices = self._post("/v1/completions", {**asked, "prompt_logprobs": 0})["choices"]
        choices = sorted(choices, key=lambda choice: choice["index"])
        return [
            [held[str(token)]["logprob"] for token, held in scored(prompt, one["prompt_logprobs"])]
            for prompt, one in zip(prompts, choices, strict=True)
        ]

    def _get(self, path: str) -> Any:
        return self._request(path, None)

    def _post(self, path: str, content: Any = None) -> Any:
        return self._request(path, json.dumps({} if content is None else content).encode())

    def _request(self, path: str, content: bytes | None) -> Any:
        request = urllib.request.Request(self._address + path, content, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                return json.loads(reply.read() or b"{}")
        except urllib.error.HTTPError as exc:
            raise _refused(path, exc) from exc
        except OSError as exc:
            raise MergeError(f"{self._address} does not answer: {exc}") from exc


class NoSuchPathError(MergeError):
    """The server has no such endpoint."""


def _refused(path: str, exc: urllib.error.HTTPError) -> MergeError:
    said = exc.read().decode(errors="replace").strip()[:500]
    if exc.code in (401, 403):
        return MergeError(f"{path}: the server refuses the key in VLLM_API_KEY, or wants one")
    if exc.code in (404, 405):
        return NoSuchPathError(
            f"the server has no {path}: start it with VLLM_SERVER_DEV_MODE=1 in its environment"
        )
    return MergeError(f"{path}: the server answers {exc.code}, {said}; its log has more")
