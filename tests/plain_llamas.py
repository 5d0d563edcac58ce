"""Llamas of two layers and 12 tokens, written without transformers in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def plain_llamas(root: Path) -> Path:
    """Write the models base, a, b and other, the folders lora and delta, and texts.jsonl."""
    names = [f"self_attn.{part}_proj" for part in "qkvo"] + ["mlp.gate_proj", "mlp.up_proj"]
    shapes = {f"model.layers.{i}.{n}.weight": (8, 8) for i in range(2) for n in names}
    shapes |= {f"model.layers.{i}.mlp.down_proj.weight": (8, 8) for i in range(2)}
    norms = ("input_layernorm", "post_attention_layernorm")
    shapes |= {f"model.layers.{i}.{n}.weight": (8,) for i in range(2) for n in norms}
    shapes |= {"model.embed_tokens.weight": (12, 8), "model.norm.weight": (8,)}
    shapes |= {"lm_head.weight": (12, 8)}
    for i, name in enumerate(("base", "a", "b", "other", "delta")):
        folder = root / name
        folder.mkdir()
        tensors = {name: torch.full(shape, 0.5 + i) for name, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", CONFIG)
        write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
        write_json(folder / "tokenizer.json", {**TOKENIZER, "added_tokens": ADDED[: 2 + i % 2]})
        special = {"eos_token": "</s>", "chat_template": "{{ messages }}" * i}
        write_json(folder / "tokenizer_config.json", special)
    (root / "lora").mkdir()
    factors = {f"layers.{i}.self_attn.q_proj.lora_{k}.weight": torch.ones(*s) for i in range(2)
               for k, s in (("A", (2, 8)), ("B", (8, 2)))}  # fmt: skip
    factors = {f"base_model.model.model.{name}": factor for name, factor in factors.items()}
    save_file(factors, root / "lora" / "adapter_model.safetensors")
    write_json(root / "lora" / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 4})
    texts = "".join(json.dumps({"text": f"w{i} w{i + 1}"}) + "\n" for i in range(5))
    (root / "texts.jsonl").write_text(texts)
    return root


CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 12,
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None, "decoder": None,
    "model": {
        "type": "WordLevel", "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": 3 + i for i in range(7)}},
    },
}  # fmt: skip
ADDED = [
    {"id": i, "content": content, "special": True, "single_word": False, "lstrip": False,
     "rstrip": False, "normalized": False}
    for i, content in ((1, "<s>"), (2, "</s>"), (10, "<extra>"))
]  # fmt: skip


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))
