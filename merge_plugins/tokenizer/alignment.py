"""Match embedding rows by token, for models whose vocabularies differ.

Every weight with a row per token (embedding, output head and its bias) is read with its rows in
the order of the merge's vocabulary. mergekit's rules for a token that a model lacks: the row the
recipe names; else the row of the only model that has it; else the base's; else the mean of the
rows there are; else zeros. Rows beyond the last token are the mean of the model's own.
"""

from __future__ import annotations

import functools
import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merge_plugins.errors import MergeWarning, RecipeError
from merge_plugins.recipe import Reference
from merge_plugins.recipe.tokenizer import Tokenizer, TokenRow
from merge_plugins.weights import SourceTensor
from merge_plugins.weights.rows import MEAN, OTHER, Row, with_rows

logger = logging.getLogger(__name__)


Vocabulary = Mapping[str, int]


def merged_vocabulary(
    tokenizer: Tokenizer, donor: Reference, vocabularies: Mapping[Reference, Vocabulary]
) -> dict[str, int]:
    """Merge vocabularies, by id: the donor's tokens, then those that others add.

    ``donor``: the model that ``tokenizer.source`` names, or the one a union starts with.
    ``vocabularies``: of that model and of every model of the merge, in the recipe's order.
    """
    merged = dict(vocabularies[donor])
    others = vocabularies.values() if tokenizer.source == "union" else ()
    new = (token for tokens in others for token in sorted(tokens, key=tokens.__getitem__))
    rows = itertools.count(1 + max(merged.values(), default=-1))
    for token in (*new, *(row.token for row in tokenizer.tokens)):
        if token not in merged:
            merged[token] = next(rows)
    return merged


@dataclass(frozen=True)
class Alignment:
    """The row of each model that every row of the merge is read from."""

    tokenizer: Tokenizer
    base: Reference | None
    tokens: Vocabulary
    """The merge's tokens, by id."""
    vocabularies: Mapping[Reference, Vocabulary]
    """Tokens of every model of the merge, by id."""

    @functools.cached_property
    def rows(self) -> Sequence[str | None]:
        """The token of each row; None where there is none."""
        n_rows, multiple = 1 + max(self.tokens.values()), self.tokenizer.pad_to_multiple_of or 1
        by_row = {row: token for token, row in self.tokens.items()}
        return [by_row.get(row) for row in range(-(-n_rows // multiple) * multiple)]

    @functools.cached_property
    def _named(self) -> Mapping[str, TokenRow]:
        return {row.token: row for row in self.tokenizer.tokens}

    def of(self, ref: Reference, weights: Mapping[Reference, SourceTensor]) -> SourceTensor:
        """Reorder a model's weight into the merge's rows; ``weights``: that of every model."""
        rows = [self._taken(ref, token, weights) for token in self.rows]
        others = {
            at: self._others(str(token), weights)
            for at, (token, row) in enumerate(zip(self.rows, rows, strict=True))
            if row == OTHER
        }
        dtypes = [weight.read_as for weight in weights.values()]
        return with_rows(weights[ref], rows, others, functools.reduce(torch.promote_types, dtypes))

    def of_statistic(self, ref: Reference, found: SourceTensor) -> SourceTensor:
        """Reorder a per-row statistic of a model into the merged vocabulary.

        Rows of tokens that the model lacks are 0.
        """
        rows = [self._taken(ref, token, {ref: found}) for token in self.rows]
        nothing: dict[int, Sequence[Row]] = {at: () for at, row in enumerate(rows) if row == OTHER}
        return with_rows(found, rows, nothing)

    def _taken(
        self, ref: Reference, token: str | None, weights: Mapping[Reference, SourceTensor]
    ) -> int:
        """Find the row of a model that a row of the merge is read from, or `MEAN`, or `OTHER`."""
        if token is None:
            return MEAN
        own = self._row(ref, token, weights)
        forced = token in self._named and self._named[token].force
        return OTHER if own is None or forced else own

    def _row(
        self, ref: Reference, token: str, weights: Mapping[Reference, SourceTensor]
    ) -> int | None:
        """Find a model's row of a token; ids beyond its embedding have none."""
        row = self.vocabularies[ref].get(token)
        return row if row is not None and row < weights[ref].shape[0] else None

    def _others(self, token: str, weights: Mapping[Reference, SourceTensor]) -> list[Row]:
        """List the rows whose mean a token gets in a model that lacks it."""
        named = self._named.get(token)
        if named is not None and (named.kind or named.model is not None):
            return self._named_row(named, weights)
        owners = {
            ref: row for ref in weights if (row := self._row(ref, token, weights)) is not None
        }
        if len(owners) > 1 and self.base in owners:
            owners = {self.base: owners[self.base]}
        return [(weights[ref], row) for ref, row in owners.items()]

    def _named_row(self, named: TokenRow, weights: Mapping[Reference, SourceTensor]) -> list[Row]:
        if named.kind == "zero" or named.model is None:
            return []
        where = f"tokenizer: tokens: {named.token}"
        if named.model not in weights:
            raise RecipeError(f"{where}: {named.model} is none of the models merged; list it")
        other = named.token if named.other is None else named.other
        row = other if isinstance(other, int) else self._row(named.model, other, weights)
        if row is None or not 0 <= row < weights[named.model].shape[0]:
            raise RecipeError(f"{where}: {named.model} has no row for {other!r}")
        return [(weights[named.model], row)]

    def renumbered(self, config: Mapping[str, Any], ref: Reference) -> dict[str, Any]:
        """Renumber the special tokens of a config or generation config by the merge's ids.

        A token that the merge does not have is None, and is left out of a list.
        """
        old = self.vocabularies.get(ref, self.tokens)
        token_of = {row: token for token, row in old.items()}

        def one(given: Any) -> Any:
            return self.tokens.get(token_of.get(given, "")) if isinstance(given, int) else given

        def new(given: Any) -> Any:
            if isinstance(given, list):
                return [row for row in map(one, given) if row is not None]
            return one(given)

        return {
            key: new(value) if key.endswith("_token_id") else value for key, value in config.items()
        }

    def warn(self, rows: Mapping[Reference, int | None]) -> None:
        """Warn of tokens that the merge drops, and of ids beyond an embedding of ``rows``."""
        for ref, tokens in self.vocabularies.items():
            n_rows = rows.get(ref) or len(tokens) + max(tokens.values(), default=0)
            beyond = [t for t, row in tokens.items() if row >= n_rows and t in self.tokens]
            if beyond:
                warnings.warn(
                    f"{ref}: {beyond[0]!r} has id {tokens[beyond[0]]}, its embedding {n_rows} rows"
                    f"{f'; {len(beyond)} tokens are like that' if len(beyond) > 1 else ''}. The "
                    "merge takes their rows from other models or makes them zero: name a source "
                    "under tokenizer: tokens:, or delete them from its tokenizer.json",
                    MergeWarning,
                    stacklevel=3,
                )
            lost = [token for token in tokens if token not in self.tokens]
            if lost:
                shown = ", ".join(map(repr, lost[:3])) + (", …" if len(lost) > 3 else "")
                logger.warning(
                    "%s: %d token%s not in the merge's vocabulary and dropped: %s",
                    ref, len(lost), " is" if len(lost) == 1 else "s are", shown,
                )  # fmt: skip
