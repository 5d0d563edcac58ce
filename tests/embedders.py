"""Tiny sentence-transformers models: what is beside the transformer, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def embedder(
    folder: str | Path,
    pooling: Sequence[str] = ("mean", "normalize"),
    *,
    width: int = 16,
    dense: int | None = None,
    limit: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Make the model in a folder one of sentence-transformers, as its release 2 wrote them.

    ``dense``: seed of the weights of a projection to 8 numbers. ``limit``: its max_seq_length.
    """
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense is not None else [])]
    kinds += ["Normalize"] if "normalize" in pooling else []
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    modes = {key: mode in pooling for mode, key in MODES.items()}
    written: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "config_sentence_transformers.json": settings or {},
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
    }
    if dense is not None:
        drawn = torch.Generator().manual_seed(dense)
        projection = {
            "linear.weight": torch.randn(8, width, generator=drawn),
            "linear.bias": torch.randn(8, generator=drawn),
        }
        written["2_Dense/config.json"] = {
            "in_features": width,
            "out_features": 8,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        Path(folder, "2_Dense").mkdir()
        save_file(projection, Path(folder, "2_Dense", "model.safetensors"), {"format": "pt"})
    for name, content in written.items():
        Path(folder, name).parent.mkdir(exist_ok=True)
        Path(folder, name).write_text(json.dumps(content))
    return str(folder)
