"""Turn a live engine of vLLM into one merge after another, by a swap that has been verified.

    engine = LiveEngine(InProcess(llm), recipe)     # the recipe that the engine was started with
    engine.become(Recipe.load("other.yaml"))

Requests that run are finished first, caches of the old weights are dropped, and the engine's name
for its weights is the merge's digest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeAlias

import torch

from harness_adapters.vllm import LOAD_FORMAT, canary
from harness_adapters.vllm.engines import Engine, Prompts
from merge_plugins import identity
from merge_plugins.engine import open_merge
from merge_plugins.errors import MergeError
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import generation_config, tokenizer_folder

Call: TypeAlias = tuple[str, Mapping[str, Any]]
logger = logging.getLogger(__name__)


class SwapError(MergeError):
    """This engine cannot become a merge that an engine started with it would be."""


class LiveEngine:
    """An engine that becomes one merge after another; ``recipe``: what it was started with."""

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        self._engine, self.recipe = engine, recipe
        self._broken = ""

    def become(self, recipe: Recipe, *, verify: bool = True) -> None:
        """Turn into the merge of another recipe.

        The first swap of each kind of engine is verified, which takes seconds in which the engine
        holds other weights; ``verify=False`` refuses that. Raises `SwapError` if only a new engine
        can be that merge. After another `MergeError` the engine is what it was.
        """
        if self._broken:
            raise SwapError(self._broken)
        layers = self._same_model(recipe)
        described = canary.kind(self._engine, layers)
        verdict = canary.remembered(described)
        if verdict is None:
            if not verify:
                raise MergeError(
                    "no swap of this kind of engine has been verified yet. Do that with --verify, "
                    "while nobody else sends requests: for seconds it holds other weights"
                )
            verdict = self._verify(layers)
            canary.remember(described, verdict)
            if not verdict.is_right:
                self._engine.halt()
                self._refuse(verdict)
        if not verdict.is_right:
            self._refuse(verdict)
        self._replace(recipe)
        self.recipe = recipe

    def log_probabilities(self) -> list[list[float]]:
        """Score the canary's prompts, of tokens at random."""
        return self._ask(self._prompts(_layers(self.recipe)))

    def _same_model(self, recipe: Recipe) -> Mapping[str, Any]:
        """Return the config that two merges share, or raise `SwapError`."""
        layers = _layers(recipe)
        changed = _differing(_layers(self.recipe), layers)
        changed += _differing(_files(self.recipe), _files(recipe))
        if changed:
            raise SwapError(
                f"the merge has another {', '.join(changed)} than that of the engine, "
                "which keeps what it was started with: start it with the other recipe"
            )
        return layers

    def _verify(self, layers: Mapping[str, Any]) -> canary.Verdict:
        """Swap to the probe, and compare with transformers; the probe stays."""
        holds, here = self._engine.weights(), identity.digest(self.recipe)
        if holds not in (None, here):
            raise MergeError(
                f"the engine holds {holds}, not {here}: name the recipe that it holds (--serving), "
                "or verify before any other swap"
            )
        logger.warning("verifying, once, that an engine of this kind can be swapped")
        asked, dtype = self._prompts(layers), _dtype(self._engine)
        trusted = bool(canary.setting(self._engine.config, "model_config.trust_remote_code"))
        probe = canary.probe(self.recipe).trusting(trusted)
        merge, halved = (canary.expected(one, asked, dtype) for one in (self.recipe, probe))
        noise = canary.distance(self._ask(asked), merge)
        self._replace(probe)
        swapped = canary.distance(self._ask(asked), halved)
        return canary.Verdict(noise, swapped, canary.distance(merge, halved))

    def _ask(self, prompts: Prompts) -> list[list[float]]:
        try:
            return self._engine.log_probabilities(prompts)
        except Exception as exc:  # vLLM's own; it has stopped
            self._broken = f"the engine does not score a prompt, so no swap can be verified: {exc}"
            raise SwapError(self._broken) from exc

    def _prompts(self, layers: Mapping[str, Any]) -> Prompts:
        vocabulary = layers.get("text_config", layers)["vocab_size"]
        longest = canary.setting(self._engine.config, "model_config.max_model_len")
        return canary.prompts(int(vocabulary), int(longest))

    def _refuse(self, verdict: canary.Verdict) -> NoReturn:
        self._broken = (
            f"vLLM {self._engine.release} does not replace the weights of this model rightly: "
            f"{verdict}. Restart the engine with the other recipe"
        )
        raise SwapError(self._broken)

    def _replace(self, recipe: Recipe) -> None:
        with _staged(self._engine, recipe) as calls:
            with self._engine.between_requests():
                self._broken = "a swap broke off and the engine may be neither merge; restart it"
                try:
                    for method, arguments in calls:
                        self._engine.call(method, **arguments)
                    self._engine.label(identity.digest(recipe))
                except Exception as exc:
                    raise SwapError(f"{self._broken}: {exc}") from exc
            self._broken = ""


@contextmanager
def _staged(engine: Engine, recipe: Recipe) -> Iterator[Sequence[Call]]:
    """Yield the calls that replace the weights; what is wrong with the recipe shows before."""
    if canary.setting(engine.config, "weight_transfer_config.backend") == LOAD_FORMAT:
        engine.call("init_weight_transfer_engine", init_info={"recipe": recipe.as_dict()})
        update: Call = "update_weights", {"update_info": {}}
        yield [("start_weight_update", {}), update, ("finish_weight_update", {})]
        return
    with TemporaryDirectory(prefix="merge-plugins-") as folder:
        file = Path(folder) / "merge.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        yield [("reload_weights", {"weights_path": str(file)})]


def _layers(recipe: Recipe) -> dict[str, Any]:
    """Return a merge's config, which an engine keeps when its weights are replaced."""
    plan = open_merge(recipe).plan
    plan.refuse_routing("vLLM engine")
    layers = _effective(plan.config)
    if layers.get("dtype"):  # the name before transformers 4.56, which not every config.json has
        layers.pop("torch_dtype", None)
    return layers


def _files(recipe: Recipe) -> dict[str, Any]:
    """Return what an engine keeps of the files beside config and weights."""
    return {
        "tokenizer": identity.tokenizer_identity(str(tokenizer_folder(recipe))),
        "generation config": _effective(generation_config(recipe) or {}),
    }


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in canary.NAMES_ONLY}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]


def _dtype(engine: Engine) -> torch.dtype:
    name = str(canary.setting(engine.config, "model_config.dtype")).removeprefix("torch.")
    found: torch.dtype = getattr(torch, name)
    return found
