"""The transformer of a mounted embedder where sentence-transformers asks no Auto class for it.

Of a model with an encoder and a decoder, T5 and its kin, it loads the encoder by its own class,
which would look for weights in the folder.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Transformer

from merge_plugins.outputs.mount import Mounted


class AutoModelForTextEncoding(Mounted):
    """The encoder of a recipe folder's merge."""


class MergedTransformer(Transformer):
    """An ordinary Transformer, once it is loaded, whose weights are merged as it loads."""

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Transformer:
        """Load the module of a recipe folder; arguments are those of `Transformer.load`."""
        module: Transformer = super().load(*args, **kwargs)
        module.__class__ = Transformer  # so it is saved as one
        return module

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: Any,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> Any:
        return AutoModelForTextEncoding.from_pretrained(
            model_name_or_path, config=config, **model_kwargs
        )
