"""Read the arguments that ``--model merged-classifiers`` takes beside the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness_adapters.lm_eval.arguments import SAME_OUTPUTS
from harness_adapters.options import check_device
from merge_plugins.errors import RecipeError, did_you_mean
from merge_plugins.parallel import accelerator
from merge_plugins.plugins.values import TRUTH
from merge_plugins.recipe.dtypes import dtype_name

AUTO = "auto"


@dataclass(frozen=True)
class Options:
    """How classifiers are loaded and run; names are lm-eval's and transformers'."""

    experts: bool = False
    """Whether each task is answered by its model alone, unmerged."""
    batch_size: int | str = AUTO
    """Rows at once; ``auto``, and lm-eval's default of 1: as many as a batch's tokens allow."""
    max_batch_size: int | None = None
    device: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    """Most tokens of a row; None: as many as model and tokenizer take."""
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any], recipe_words: Iterable[str] = ()) -> Options:
        """Parse arguments of any of lm-eval's parsers, or raise `RecipeError`."""
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                hint = did_you_mean(name, {*known, *recipe_words})
                raise RecipeError(f"--model merged-classifiers has no argument {name!r}{hint}")
            if value not in (None, "None"):
                found[name] = _typed(name, value, known[name])
        check_device(found.get("device", "cpu"))
        return cls(**found)

    @property
    def place(self) -> str:
        """The device to run on: by default an accelerator, if there is one."""
        return self.device or str(accelerator() or "cpu")

    @property
    def for_loading(self) -> dict[str, Any]:
        """Arguments for the models."""
        given = {"dtype": self.dtype, "attn_implementation": self.attn_implementation}
        return {"device_map": {"": self.place}, **{k: v for k, v in given.items() if v}}

    def outputs_depend_on(self) -> dict[str, str]:
        """Select the arguments that may change a model's answers."""
        return {
            field.name: str(getattr(self, field.name)).removeprefix("torch.")
            for field in dataclasses.fields(self)
            if field.name not in SAME_OUTPUTS and getattr(self, field.name) != field.default
        }


def _typed(name: str, value: Any, default: Any) -> Any:
    text = str(value).lower()
    if isinstance(default, bool):
        if text not in TRUTH:
            raise RecipeError(f"{name}= is true or false; got {value!r}")
        return TRUTH[text]
    if name in ("batch_size", "max_batch_size", "max_length"):
        if name == "batch_size" and (text == "1" or text.partition(":")[0] == AUTO):
            return AUTO
        if not text.isdecimal() or not int(text):
            raise RecipeError(f"{name}= is a whole number, 1 or more; got {value!r}")
        return int(text)
    return dtype_name(value, also=(AUTO,)) if name == "dtype" else str(value)
