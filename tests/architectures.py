"""Tiny models of every architecture in transformers' mappings, merged in every layout they have.

``python tests/architectures.py [KIND …]`` builds, merges and compares all of them, and prints a
table; tests/hf/test_every_architecture.py takes a dozen.
"""

from __future__ import annotations

import collections
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from merge_plugins import MergeError, Recipe, load_merged, save

KINDS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "classifier": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
SIZES = (
    (r"layers?$|^depth$", 2),
    (r"kv_heads$|key_value_heads$|n_head_kv$", 2),
    (r"heads?$|n_head$", 4),
    (r"head_dim$|^d_kv$", 8),
    (r"vocab_size", 96),
    (r"intermediate|ffn|mlp_(size|dim)|d_ff|n_inner|inner_dim", 48),
    (r"hidden_size$|d_model$|n_embd$|^dim$|embed_dim$|embedding_size$|hidden_dim$|proj_dim$", 32),
    (r"projection_dim$|model_dim$|emb_dim$", 32),
    (r"(num_local|n_routed|num)_experts$", 4),
    (r"experts_per_tok$|moe_topk$|moe_k$|top_k_experts$", 2),
    (r"n_group$|topk_group$|n_groups$|num_groups$|first_k_dense_replace$", 1),
    (r"_rank$", 8),
    (r"image_size$", 28),
    (r"patch_size$", 14),
    (r"max_position|n_positions|max_seq_len|n_ctx|max_source|max_target", 128),
    (r"(pad|bos|eos|unk|sep|cls|mask)_token_id$", 1),
)
"""What to set where a config has more: the first pattern that a key matches."""
LARGEST = 3_000_000
"""Parameters of a model that is still merged; a few have sizes that no key of a config sets."""


class Case(NamedTuple):
    kind: str
    model_type: str
    class_name: str


class NotTinyError(Exception):
    """No tiny model of that type is built by `tiny`."""


def cases(kind: str) -> Iterator[Case]:
    """Every model type of a mapping with its first class."""
    for model_type, names in getattr(modeling_auto, KINDS[kind]).items():
        yield Case(kind, model_type, names if isinstance(names, str) else names[0])


def shrink(config: Any) -> Any:
    """Make every size in a config tiny, by its name."""
    for key, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            shrink(value)
        elif isinstance(value, list) and key.endswith(("layer_types", "block_type")):
            setattr(config, key, value[:2])
        elif key == "per_layer_config":
            setattr(config, key, {})
        elif type(value) is int:
            size = next((size for pattern, size in SIZES if re.search(pattern, key)), value)
            if value > size or key.endswith("token_id"):
                setattr(config, key, size)
    return config


def tiny(case: Case) -> Any:
    """Build a tiny model of random weights, or raise `NotTinyError`."""
    try:
        model_class = getattr(transformers, case.class_name)
        config = shrink(CONFIG_MAPPING[case.model_type]())
        if model_class.config_class == config.sub_configs.get("text_config"):
            config = config.get_text_config()
        if model_class.config_class is not type(config):
            raise NotTinyError(f"{case.class_name} has configs of another type")
        with torch.device("meta"):
            numel = sum(weight.numel() for weight in model_class(config).parameters())
        if numel > LARGEST:
            raise NotTinyError(f"{numel / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model = model_class(config).eval()
        with tempfile.TemporaryDirectory() as folder:  # a config of these sizes may be refused
            model.save_pretrained(folder)
            model_class.from_pretrained(folder)
        return model
    except Exception as exc:
        raise NotTinyError(f"{type(exc).__name__}: {str(exc).strip().splitlines()[:1]}") from exc


def write(model: Any, folder: Path) -> None:
    """Write a model as `save_pretrained` does, and beside it with the names of its modules."""
    model.save_pretrained(folder)
    live = folder.with_name(f"{folder.name}-live")
    shutil.copytree(folder, live)
    for file in live.glob("*.safetensors*"):
        file.unlink()
    own = model.state_dict()
    for twin in (*(model.all_tied_weights_keys or ()), *(model._keys_to_ignore_on_save or ())):
        own.pop(twin, None)
    weights = {name: weight.clone().contiguous() for name, weight in own.items()}
    save_file(weights, live / "model.safetensors", {"format": "pt"})


def half(root: Path, base: str, *experts: str) -> Recipe:
    return Recipe.from_mapping(
        {
            "merge_method": "linear",
            "models": [{"model": str(root / m), "parameters": {"weight": 0.5}} for m in experts],
            "base_model": str(root / base),
            "parameters": {"normalize": False},
        }
    )


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.float() for name, weight in model.state_dict().items()}


def same(found: Any, wanted: dict[str, torch.Tensor]) -> bool:
    got = state(found)
    return got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)


def outcome(case: Case, root: Path) -> str:
    """Merge two experts in each pair of layouts: "equal", or what went wrong."""
    model = tiny(case)
    states = []
    for name in ("a", "b"):
        write(model, root / name)
        states.append(state(type(model).from_pretrained(root / name)))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    wanted = {
        name: 0.5 * weight + 0.5 * states[1][name] if weight.is_floating_point() else weight
        for name, weight in states[0].items()
    }
    pairs = [("a", "b"), ("a", "b-live"), ("a-live", "b"), ("a-live", "b-live")]
    for donor, other in pairs:
        recipe = half(root, donor, donor, other)
        if not same(load_merged(recipe, type(model)), wanted):
            return f"differs: {donor} with {other}"
        if donor != other.removesuffix("-live"):
            saved = save(recipe, root / f"saved-{donor}-{other}")
            if not same(type(model).from_pretrained(saved), wanted):
                return f"saved differs: {donor} with {other}"
    return "equal"


def main(kinds: list[str]) -> int:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    table: dict[str, collections.Counter[str]] = {}
    for kind in kinds or KINDS:
        counts = table.setdefault(kind, collections.Counter())
        for case in cases(kind):
            counts["types"] += 1
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = outcome(case, Path(folder))
                except NotTinyError as exc:
                    counts["not built"] += 1
                    print("not built", *case, exc, flush=True)
                    continue
                except MergeError as exc:
                    found = f"refused: {exc}"
                except Exception as exc:
                    traceback.print_exc()
                    found = f"crashed: {type(exc).__name__}: {exc}"
            counts["built"] += 1
            counts[found.partition(":")[0]] += 1
            if found != "equal":
                print(*case, found.replace("\n", " ")[:300], flush=True)
    columns = ("types", "built", "not built", "equal", "refused", "differs", "crashed")
    print("\n|kind|" + "|".join(columns) + "|\n|---|" + "---:|" * len(columns))
    for kind, counts in table.items():
        print(f"|{kind}|" + "|".join(str(counts[column]) for column in columns) + "|")
    return int(any(counts["crashed"] + counts["differs"] for counts in table.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
