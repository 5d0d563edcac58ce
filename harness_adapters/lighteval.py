"""Score merges with lighteval: its command ``custom``, with a recipe for a model.

    python -m harness_adapters.lighteval merge.yaml "mmlu:anatomy|0" [options of lighteval custom]
    python -m harness_adapters.lighteval "model_name=merge.yaml,batch_size=8" …

The first argument is a recipe, or the arguments of ``lighteval accelerate`` with a recipe in
``model_name``. This file is what lighteval calls a model definition: `MergedModel` is its own
``TransformersModel`` on a recipe folder. Results and cached answers are filed under
``merged/NAME-DIGEST``.
"""

from __future__ import annotations

import sys

from lighteval.models.custom import custom_model
from lighteval.models.transformers import transformers_model
from lighteval.utils import cache_management

from harness_adapters.ending import exit_status
from harness_adapters.mounted import mounted

# Modules and no classes are imported: lighteval takes the first model class that it finds here.


class MergedModel(transformers_model.TransformersModel):
    """``TransformersModel`` on a merge."""

    def __init__(self, config: custom_model.CustomModelConfig) -> None:
        stock = arguments(config.model_name)
        merge = mounted(stock.model_name, trust_remote_code=stock.trust_remote_code)
        where = {"model_name": str(merge.folder), "trust_remote_code": True}  # our few lines
        loaded = stock.model_copy(update=where)
        super().__init__(loaded)
        # By these lighteval files results and answers: not by a folder that is gone tomorrow.
        self.model_name = f"merged/{merge.name}"
        self.config = loaded.model_copy(update={"model_name": self.model_name})
        self._cache = cache_management.SampleCache(self.config)


def arguments(given: str) -> transformers_model.TransformersModelConfig:
    """Read a recipe, or arguments of a model as lighteval writes them: ``model_name=…,…``."""
    if "model_name=" not in given:
        return transformers_model.TransformersModelConfig(model_name=given, dtype="auto")
    config = transformers_model.TransformersModelConfig.from_args(given)
    return config.model_copy(update={"dtype": config.dtype or "auto"})


def main() -> int:
    """Run ``lighteval custom`` with this file as the model definition."""
    from lighteval.__main__ import app

    at = next((i for i, word in enumerate(sys.argv[1:], 1) if not word.startswith("-")), 1)
    sys.argv = ["lighteval", "custom", *sys.argv[1 : at + 1], __file__, *sys.argv[at + 1 :]]
    app()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
