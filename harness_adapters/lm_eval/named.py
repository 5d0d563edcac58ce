"""Everything that lm-eval identifies a model by, for a model that is a merge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import merge_plugins
from harness_adapters.lm_eval.arguments import outputs_depend_on
from merge_plugins import identity
from merge_plugins.outputs.needs import needs
from merge_plugins.recipe import Recipe
from merge_plugins.tokenizer import tokenizer_folder
from merge_plugins.weights.hub import resolve


class NamedByDigest:
    """Name results and caches by the merge's digest, as a base class before one of lm-eval's."""

    recipe: Recipe
    tokenizer: Any
    _options: dict[str, Any]
    """The arguments beside the recipe, as they were given."""

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Build the model, and write the merge's name into the arguments that lm-eval records."""
        lm = super().create_from_arg_obj(arg_dict, *args, **kwargs)  # type: ignore[misc]
        arg_dict["model"] = identity.label(lm.recipe)
        donor, folder = lm.recipe.tokenizer_donor, tokenizer_folder(lm.recipe)
        if not isinstance(donor, str) or resolve(donor) != folder:
            donor = str(folder)
        if "@" not in donor:  # synthetic tasks load it, without support for revisions
            arg_dict.setdefault("tokenizer", donor)
        return lm

    def get_model_info(self) -> dict[str, Any]:
        """Add the recipe and the identity of each source to the info beside lm-eval's scores."""
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        digest = identity.digest(self.recipe)
        info["model_sha"] = digest
        info["merge"] = {
            "recipe": self.recipe.as_dict(),
            "digest": digest,
            "sources": {str(ref): identity.model_identity(ref) for ref in self.recipe.references},
            "merge_plugins": merge_plugins.__version__,
        }
        plugins = needs(self.recipe)
        info["merge"] |= {"plugins": plugins} if plugins else {}
        return info

    @cached_property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's prompt cache: the tokenizer's name and a hash of its content."""
        tokenizer = self.tokenizer
        if tokenizer.is_fast:
            rules = tokenizer.backend_tokenizer.to_str()
        else:
            rules = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        content = f"{rules}{tokenizer.chat_template}{tokenizer.special_tokens_map}"
        name = Path(tokenizer.name_or_path).name
        return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use a cache table of this model alone: lm-eval's ``--use_cache`` keys name no model."""
        super().set_cache_hook(cache_hook)  # type: ignore[misc]
        database = cache_hook.dbdict
        if database is None:
            return
        content = {
            "merge_plugins": merge_plugins.__version__,
            "digest": identity.digest(self.recipe),
            "tokenizer": self.tokenizer_name,
            "options": self.answers_depend_on(self._options),
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        database.tablename = f"merged_{key[:32]}"  # lm-eval's reader holds the same object
        database.conn.execute(
            f'CREATE TABLE IF NOT EXISTS "{database.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
        )
        database.conn.commit()

    @classmethod
    def answers_depend_on(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """Select the arguments that may change a merge's answers."""
        return outputs_depend_on(options, cls)
