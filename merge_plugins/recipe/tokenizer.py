"""Parse the vocabulary of a merge: mergekit's keys ``tokenizer_source`` and ``tokenizer``.

    tokenizer_source: base      the base's tokens; or union; or a model
    tokenizer:                  the long form
        source: union           the default
        tokens:
            <|im_start|>:
                source: MODEL   gives the token's row to the models that lack it
                force: true     and to all others
            <|new|>: {source: {kind: zero}}
            <|other|>: {source: {kind: model_token, model: MODEL, token: <s>}}    or token_id: 0
        pad_to_multiple_of: 64  adds rows without a token, up to a multiple

Without either key rows are merged by position, so all models need the same number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from merge_plugins.errors import RecipeError, nearest_or_all
from merge_plugins.recipe.chat_templates import TEMPLATES
from merge_plugins.recipe.references import Reading, Reference, reference, written

MULTIPLE = 2**16
"""The largest multiple that an embedding may be padded to."""


@dataclass(frozen=True)
class TokenRow:
    """The source of one token's embedding row."""

    token: str
    model: Reference | None = None
    """Model that has the row; None: zeros, or the default rule if `kind` is empty too."""
    other: str | int | None = None
    """Another token of that model, or its id, whose row is taken instead."""
    kind: str = ""
    """``zero``, ``model_token`` or empty."""
    force: bool = False
    """Whether the row also replaces that of models which have the token."""

    def as_dict(self, shown: Callable[[str], str]) -> dict[str, Any]:
        """Convert the token's entry to its YAML mapping."""
        model = None if self.model is None else written(self.model, shown)
        source: Any = model
        if self.kind:
            word = "token_id" if isinstance(self.other, int) else "token"
            source = {"kind": self.kind, "model": model, word: self.other}
            source = {key: value for key, value in source.items() if value is not None}
        entry = {"source": source, "force": self.force}
        return {key: value for key, value in entry.items() if value not in (None, False)}


@dataclass(frozen=True)
class Tokenizer:
    """The tokens of a merge and the size of its embedding."""

    source: Reference
    """A model, or one of the words ``base`` and ``union``."""
    tokens: tuple[TokenRow, ...] = ()
    pad_to_multiple_of: int | None = None

    def as_keys(self, shown: Callable[[str], str] = str) -> dict[str, Any]:
        """Convert to ``tokenizer_source``, or to ``tokenizer`` if more than the source is set."""
        source = self.source if self.source in ("base", "union") else written(self.source, shown)
        if not self.tokens and not self.pad_to_multiple_of:
            return {"tokenizer_source": source}
        mapping = {
            "source": source,
            "tokens": {row.token: row.as_dict(shown) for row in self.tokens},
            "pad_to_multiple_of": self.pad_to_multiple_of,
        }
        return {"tokenizer": {key: value for key, value in mapping.items() if value}}


def from_keys(
    given: Mapping[str, Any], base: Reference | None, reading: Reading
) -> Tokenizer | None:
    """Parse ``tokenizer_source`` or ``tokenizer``; None if the recipe has neither."""
    if "tokenizer" in given and "tokenizer_source" in given:
        raise RecipeError("tokenizer and tokenizer_source say the same; keep one")
    if "tokenizer_source" in given:
        return Tokenizer(_source("tokenizer_source", given["tokenizer_source"], base, reading))
    if "tokenizer" not in given:
        return None
    mapping = _mapping("tokenizer", given["tokenizer"], ("source", "tokens", "pad_to_multiple_of"))
    tokens = mapping.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        raise RecipeError(f"tokenizer: tokens maps each token to {{source, force}}; got {tokens!r}")
    return Tokenizer(
        _source("tokenizer: source", mapping.get("source", "union"), base, reading),
        tuple(_row(str(token), entry, reading) for token, entry in tokens.items()),
        _multiple(mapping.get("pad_to_multiple_of")),
    )


def template(given: Any, reading: Reading) -> Reference | None:
    """Parse ``chat_template``: auto, a known name, a template (it has braces), or a model."""
    if given is None or is_template(given):
        return given  # type: ignore[no-any-return]
    return reference(given, reading)


def is_template(given: Any) -> bool:
    """Check whether a ``chat_template`` is auto, a known name or a template, not a model."""
    return isinstance(given, str) and (given == "auto" or given in TEMPLATES or "{" in given)


def _source(key: str, given: Any, base: Reference | None, reading: Reading) -> Reference:
    if given == "base" and base is None:
        raise RecipeError(f"{key}: base needs base_model: <model>; or name a model")
    if given in ("base", "union"):
        return str(given)
    ref = reference(given, reading)
    return "base" if ref == base else ref


def _row(token: str, given: Any, reading: Reading) -> TokenRow:
    where = f"tokenizer: tokens: {token}"
    entry = _mapping(where, given, ("source", "force"))
    force, source = entry.get("force") or False, entry.get("source")
    if not isinstance(force, bool):
        raise RecipeError(f"{where}: force is true or false; got {force!r}")
    if source is None:
        return TokenRow(token, force=force)
    if not isinstance(source, Mapping) or "kind" not in source:
        return TokenRow(token, reference(source, reading), force=force)
    kind = source["kind"]
    if kind == "zero":
        _mapping(f"{where}: source", source, ("kind",))
        return TokenRow(token, kind="zero", force=force)
    if kind != "model_token":
        raise RecipeError(f"{where}: kind is zero or model_token; got {kind!r}")
    source = _mapping(f"{where}: source", source, ("kind", "model", "token", "token_id"))
    other = [source[key] for key in ("token", "token_id") if source.get(key) is not None]
    if len(other) != 1 or "model" not in source:
        raise RecipeError(f"{where}: model_token needs model and one of token, token_id")
    if type(other[0]) is not (int if "token_id" in source else str):
        raise RecipeError(f"{where}: token is text, token_id a whole number; got {other[0]!r}")
    return TokenRow(token, reference(source["model"], reading), other[0], "model_token", force)


def _mapping(where: str, given: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise RecipeError(f"{where} holds {', '.join(known)}; got {given!r}")
    for key in given:
        if key not in known:
            hint = nearest_or_all(str(key), known)
            raise RecipeError(f"{where}: no key {key!r}{hint}")
    return {key: value for key, value in given.items() if value is not None}


def _multiple(given: Any) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MULTIPLE:
        raise RecipeError(f"pad_to_multiple_of is a whole number, 1 to {MULTIPLE:,}; got {given!r}")
    return given
