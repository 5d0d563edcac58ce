"""Decide which Python code a mounted folder runs: ours, and its models' own only where allowed.

Whoever loads a mounted folder passes ``trust_remote_code=True``, and means our few lines. Without
leave, nothing in the folder may name other code: with that argument, transformers would run it even
for a model that it can load by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoTokenizer
from transformers.models.auto import modeling_auto

from merge_plugins.errors import RecipeError, UntrustedCodeError
from merge_plugins.weights.files import read_json
from merge_plugins.weights.modules import OWN
from merge_plugins.weights.sentence import SentenceModel

CODE = "modeling_merge"
"""Module that the folder's ``auto_map`` names."""
ENCODER_CODE = "modeling_merge_encoder"
"""Module that the folder's ``modules.json`` names for some encoders."""
NAMING_CODE = ("auto_map", "custom_pipelines")
"""Keys of a model's JSON files under which transformers finds code, here or on the hub."""
ALLOW = "If you trust it, mount with --trust-remote-code (trust_remote_code=True)"


def auto_classes(config: Mapping[str, Any], folder: Path, trust_remote_code: bool) -> list[str]:
    """List the Auto classes that support a model's architecture, with any head.

    Classes that only the model's own code supports are listed with ``trust_remote_code``.
    """
    mappings = {
        name: found._model_mapping
        for name, found in vars(modeling_auto).items()
        if name.startswith("AutoModel") and getattr(found, "_model_mapping", None) is not None
    }
    model_type, own = str(config.get("model_type")), auto_map(config)
    named = [name for name in own if name in mappings and trust_remote_code]
    own_config = trust_remote_code and "AutoConfig" in own  # of a class that no mapping has
    if model_type in CONFIG_MAPPING and not own_config:
        kind = CONFIG_MAPPING[model_type]
        named += [name for name, mapping in mappings.items() if kind in mapping]
    if named:
        return list(dict.fromkeys(named))
    if own_config:
        raise RecipeError(
            f"{folder}: the model's own code has a class for its config, and none for the model, "
            "so transformers cannot load it with that code; mount without --trust-remote-code "
            "(trust_remote_code=False)"
        )
    if own.keys() & mappings.keys():
        raise UntrustedCodeError(
            f"{folder}: transformers {transformers.__version__} knows no model of type "
            f"{model_type}; the model comes with Python code of its own. {ALLOW}"
        )
    raise RecipeError(
        f"{folder}: transformers {transformers.__version__} knows no model of type "
        f"{model_type}, so no harness could load it; see model_type in its config.json"
    )


def auto_map(config: Mapping[str, Any]) -> dict[str, Any]:
    """Select the entries of a config's ``auto_map`` that name Auto classes of transformers."""
    given = config.get("auto_map")
    entries = given.items() if isinstance(given, Mapping) else ()
    return {
        name: code
        for name, code in entries
        if name.isidentifier() and name.startswith("Auto") and hasattr(transformers, name)
    }


def code(classes: list[str]) -> str:
    """Compose the Python module of the folder: one class per Auto class."""
    defined = "".join(f"\n\nclass {name}(Mounted):\n    pass\n" for name in classes)
    return (
        '"""No weights are here: merge-plugins makes the merge of merge.yaml as it loads."""\n\n'
        f"from merge_plugins import Mounted\n{defined}"
    )


def encoder_type(config: Mapping[str, Any]) -> str | None:
    """Name the module of our code for an encoder that sentence-transformers loads by its class."""
    names = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    found = str(names.get(str(config.get("model_type")), ""))
    return f"{ENCODER_CODE}.MergedTransformer" if found.endswith("EncoderModel") else None


def encoder_code() -> str:
    """Compose the Python module that `encoder_type` names."""
    return (
        '"""No weights are here: merge-plugins makes the merge of merge.yaml as it loads."""\n\n'
        "from merge_plugins.outputs.mounted_encoder import MergedTransformer as Merged\n\n\n"
        "class MergedTransformer(Merged):\n    pass\n"
    )


def without_code(contents: Any) -> Any:
    """Copy the contents of a JSON file without the keys that name code, at any depth."""
    if isinstance(contents, Mapping):
        kept = {key: value for key, value in contents.items() if key not in NAMING_CODE}
        return {key: without_code(value) for key, value in kept.items()}
    return [without_code(each) for each in contents] if isinstance(contents, list) else contents


def refuse_needed_code(embedding: SentenceModel | None, tokenizer: Path) -> None:
    """Raise `UntrustedCodeError` where tokenizer or pooling would differ without their own code."""
    settings = [tokenizer / name for name in ("config.json", "tokenizer_config.json")]
    if any("auto_map" in read_json(file) for file in settings if file.is_file()):
        try:
            AutoTokenizer.from_pretrained(str(tokenizer), trust_remote_code=False)
        except Exception as exc:  # of any kind: tokenizers are read by many classes
            raise UntrustedCodeError(
                f"{tokenizer}: the tokenizer cannot be loaded without code of its own. {ALLOW}"
            ) from exc
    for kind in (module.type for module in embedding.modules) if embedding else ():
        if kind and not kind.startswith(OWN):
            raise UntrustedCodeError(
                f"{embedding and embedding.folder}: modules.json names {kind!r}, Python code of "
                f"its own. {ALLOW}"
            )
