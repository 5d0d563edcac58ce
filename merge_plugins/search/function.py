"""Score recipes by a function of the live model: anyone's, or a loss of LM-Cocktail, AdaMerging."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import finalize

import torch

from merge_plugins.calibration.batches import batches
from merge_plugins.calibration.coefficients import mean_entropy
from merge_plugins.calibration.losses import ExampleLoss
from merge_plugins.errors import MergeError, did_you_mean
from merge_plugins.outputs.live import LiveMerge
from merge_plugins.parallel import accelerator
from merge_plugins.plugins.files import run
from merge_plugins.recipe import Data, Recipe
from merge_plugins.search.goals import Numbers, read_goals
from merge_plugins.search.objective import Goal
from merge_plugins.weights.opened import shared_sources


class FunctionObjective(Numbers):
    """An `Objective`: a function of model, tokenizer and recipe that returns numbers by name.

    The model is in evaluation mode, without gradients, and is overwritten by the next merge; the
    function leaves its weights as they are.

    ``goals``: which of the numbers count. ``identity``: what they depend on besides the recipe.
    ``device``: where the model is, by default a GPU if there is one; ``auto``: on all.
    ``options``: those of `load_merged`.
    """

    def __init__(
        self,
        function: Callable[[Any, Any, Recipe], Mapping[str, Any]],
        goals: Mapping[str, Goal],
        identity: str,
        *,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(goals, _name(function))
        self._function = function
        counted = {key: str(value) for key, value in options.items() if key != "device_map"}
        self._identity = _hash(identity, repr(sorted(counted.items())))
        self._live = LiveMerge(**_placed(device), **options)
        self._open = ExitStack()
        self._closed = finalize(self, self._open.close)  # at the latest when Python ends
        self._open.enter_context(shared_sources())

    @classmethod
    def from_file(cls, name: str, tasks: Mapping[str, Any], **options: Any) -> FunctionObjective:
        """Take a function by ``file.py:function``. Runs the file.

        ``tasks``: the goals, as `merge_plugins.search.goals` reads them.
        """
        goals = read_goals(tasks, name)
        function, content = _function(name)
        return cls(function, goals, f"{name.rpartition(':')[2]}\n{content}", **options)

    @property
    def identity(self) -> str:
        """A hash of the function's file, its name and the options; 16 hex digits.

        What the file reads or imports is not in it.
        """
        return self._identity

    def numbers(self, recipe: Recipe) -> Any:
        """Merge, and call the function."""
        model, tokenizer = self._live.become(recipe)
        with torch.no_grad():
            return self._function(model, tokenizer, recipe)

    def close(self) -> None:
        """Free the model and the sources."""
        self._live.close()
        self._closed()


def example_loss(data: Data, **options: Any) -> FunctionObjective:
    """Minimise LM-Cocktail's ``loss`` of the merge on a few examples."""
    compute = ExampleLoss(batch_size=data.batch_size, max_input_length=data.max_length)
    examples = data.examples()
    compute.check(examples)

    def loss(model: Any, tokenizer: Any, recipe: Recipe) -> Mapping[str, float]:
        return {"loss": compute(model, tokenizer, examples)}

    goals = {"loss": Goal(higher_is_better=False)}
    return FunctionObjective(loss, goals, f"example_loss {data.digest}", **options)


def entropy(data: Data, **options: Any) -> FunctionObjective:
    """Minimise AdaMerging's ``entropy`` of the merge's predictions on texts without answers.

    Its mean over batches, in nats. A confident prediction need not be right.
    """
    examples = data.examples()
    if not examples:
        raise MergeError(f"{data.source} has no texts to predict")

    def mean(model: Any, tokenizer: Any, recipe: Recipe) -> Mapping[str, float]:
        classifier = "ForSequenceClassification" in type(model).__name__
        each = [
            float(mean_entropy(model, {key: t.to(model.device) for key, t in batch.items()}))
            for batch in batches(tokenizer, examples, data, classifier=classifier)
        ]
        return {"entropy": math.fsum(each) / len(each)}

    goals = {"entropy": Goal(higher_is_better=False)}
    return FunctionObjective(mean, goals, f"entropy {data.digest}", **options)


def _function(name: str) -> tuple[Callable[..., Any], str]:
    """Run a file and take a function of it; also return the file's text."""
    path, _, wanted = name.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not path or file.suffix != ".py" or not file.is_file():
        raise MergeError(f"{name!r}: no file {path or name!r}; write file.py:function")
    source = file.read_bytes()
    module = run(file, source, beside=True)
    function = getattr(module, wanted, None)
    if not callable(function):
        hint = did_you_mean(wanted, (n for n, value in vars(module).items() if callable(value)))
        raise MergeError(f"{file} has no function {wanted!r}{hint}")
    return function, source.decode()


def _placed(device: str | None) -> dict[str, Any]:
    """Return the arguments of `load_merged` that put a model on a device."""
    device = device or str(accelerator() or "cpu")
    if device == "auto":
        return {"device_map": "auto"}
    return {} if device == "cpu" else {"device_map": {"": device}}


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
