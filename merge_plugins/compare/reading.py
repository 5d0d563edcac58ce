"""Say in words what a comparison shows, and what that means for a merge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from statistics import fmean, median

from merge_plugins.compare.comparison import Comparison
from merge_plugins.compare.numbers import Numbers
from merge_plugins.compare.sums import DENSITY, Pair

KIN = 0.5
"""Cosine of two models' weights below which they are no fine-tunes of one model: of those that are,
it is above 0.9; of models trained apart, near 0."""
TOGETHER = 0.35
"""Cosine of task vectors above which models were hardly tuned apart from that base. Of two that
were, it is near 0; seen from a third fine-tune of their base, one half."""
CLEAR = 0.15
"""By how much less models go together from one of them than from the base to call it the base."""
ODD = 0.1
"""By how much less than any two others one model goes with them to be called out."""
FAR = 3.0
"""How many times the smallest change the largest may be before it drowns the others."""
LOW_RANK = 0.9
"""Share of a change's energy in its first directions above which it is called low-rank."""
MOST_PAIRS = 3
"""Pairs of models that get a sentence each."""
RARE = 0.5
"""Share of unchanged entries above which a change is called sparse."""


def reading(comparison: Comparison) -> list[str]:
    """Describe what stands out, one sentence or two each."""
    said = [*_base(comparison), *_kin(comparison), *_odd(comparison)]
    said += [*_sizes(comparison), *_agreement(comparison), *_shapes(comparison)]
    return [*said, *_beside(comparison)]


def _base(comparison: Comparison) -> Iterator[str]:
    """Say whether the base is the one that the models were tuned from."""
    names, whole, n = comparison.names, comparison.whole, comparison.kind.n_models
    if comparison.kind.has_base:
        for i in comparison.kind.compared:
            if whole.norm((0, i)) == 0:
                yield (
                    f"{names[i]} equals the base, {names[0]}, in every weight: it adds nothing to "
                    "a merge. Is that the right base?"
                )
    if n < 3:
        return
    seen = {i: comparison.typical(partial(Numbers.together, origin=i)) for i in range(n)}
    if any(map(math.isnan, seen.values())):
        return  # a model equals another
    hub, *others = sorted(seen, key=seen.__getitem__)
    is_clear = seen[others[0]] - seen[hub] >= CLEAR
    if not comparison.kind.has_base:
        if is_clear:
            yield (
                f"{names[hub]} looks like the base of the others: from it they go separate ways "
                f"(cosine {seen[hub]:.2f}; from any other {seen[others[0]]:.2f} or more). Compare "
                f"again with --base {names[hub]}."
            )
    elif hub != 0 and seen[0] - seen[hub] >= CLEAR:
        yield (
            f"{names[hub]} looks like the base, and {names[0]} like one of its fine-tunes: from "
            f"{names[0]} the others go the same way (cosine {seen[0]:.2f}), from {names[hub]} "
            f"separate ways ({seen[hub]:.2f}). Is the base swapped?"
        )
    elif seen[0] >= TOGETHER:
        yield (
            f"From {names[0]}, all models go the same way (cosine {seen[0]:.2f}; near 0 if they "
            f"were tuned apart). Either they share training, or {names[0]} is not the model that "
            "they were tuned from."
        )


def _kin(comparison: Comparison) -> Iterator[str]:
    """Name models that were not tuned from the base, or from the same model as any other."""
    names, whole, n = comparison.names, comparison.whole, comparison.kind.n_models
    for i in range(1 if comparison.kind.has_base else 0, n):
        others = [0] if comparison.kind.has_base else [j for j in range(n) if j != i]
        nearest = max(others, key=lambda j: whole.similarity(i, j))
        cosine = whole.similarity(i, nearest)
        if cosine < KIN:
            yield (
                f"{names[i]} is no relative of {names[nearest]}: their weights have cosine "
                f"{cosine:.2f}, fine-tunes of one model above 0.9. A merge of them is noise."
            )


def _odd(comparison: Comparison) -> Iterator[str]:
    """Name the model that goes against the others, if one stands out."""
    compared, pairs = comparison.kind.compared, _cosines(comparison)
    if len(compared) < 3 or not comparison.kind.has_base:
        return
    mean = {i: fmean(cosine for pair, cosine in pairs.items() if i in pair) for i in compared}
    odd = min(mean, key=mean.__getitem__)
    rest = [cosine for pair, cosine in pairs.items() if odd not in pair]
    if min(rest) - mean[odd] >= ODD:
        yield (
            f"{comparison.names[odd]} is the odd one out: its cosine with the others is "
            f"{mean[odd]:.2f} on average, that of any two others {min(rest):.2f} or more."
        )


def _cosines(comparison: Comparison) -> dict[Pair, float]:
    pairs = comparison.kind.pairs
    return {pair: comparison.typical(partial(Numbers.cosine, pair=pair)) for pair in pairs}


def _sizes(comparison: Comparison) -> Iterator[str]:
    names, kind, whole = comparison.names, comparison.kind, comparison.whole
    norms = {change: whole.norm(change) for change in kind.changes}
    largest, smallest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    if not kind.has_base or len(norms) < 2 or not norms[smallest]:
        return
    ratio = norms[largest] / norms[smallest]
    if ratio >= FAR:
        yield (
            f"{names[largest[1]]} changes the base {ratio:.1f} times as much as "
            f"{names[smallest[1]]}: at equal weights it drowns it. Weigh them, or use a method "
            "that normalises."
        )


def _agreement(comparison: Comparison) -> Iterator[str]:
    """Say how far each two models agree; of many, the two that agree least and most."""
    whole, kind = comparison.whole, comparison.kind
    shown = sorted(kind.pairs, key=whole.signs)
    many = len(shown) > MOST_PAIRS
    for pair in (shown[0], shown[-1]) if many else kind.pairs:
        first, second = (comparison.names[i] for i in pair)
        which = (" (least of all)" if pair == shown[0] else " (most)") if many else ""
        yield (
            f"{'' if kind.has_base else 'the weights of '}{first} and {second} agree on "
            f"{percent(whole.signs(pair))} of signs{which}, and on {percent(whole.overlap(pair))} "
            f"of the largest {percent(DENSITY)}; chance is 50 % and {percent(DENSITY)}."
        )
    if kind.has_base and kind.pairs:
        yield (
            f"TIES at density {DENSITY:g} and equal weights would drop {percent(whole.dropped)} of "
            "what it keeps, because the other models' signs prevail."
        )


def _shapes(comparison: Comparison) -> Iterator[str]:
    """Say which changes are sparse or of low rank, and where they are largest."""
    names, whole, kind = comparison.names, comparison.whole, comparison.kind
    for change in kind.changes:
        name = names[change[1]] if kind.has_base else f"{names[change[0]]} to {names[change[1]]}"
        energy = comparison.typical(partial(Numbers.energy, change=change))
        if energy >= LOW_RANK:
            yield (
                f"{name}: {percent(energy)} of the change lies in {comparison.directions} singular "
                "directions, as of an adapter: methods on singular values (tsv, iso_c) lose little."
            )
        unchanged = whole.unchanged(change[1]) if kind.has_base else 0.0
        if RARE <= unchanged < 1:
            yield f"{name} leaves {percent(unchanged)} of the base's values as they are."
        layers = {layer: numbers.norm(change) for layer, numbers in comparison.layers.items()}
        layers = {layer: norm for layer, norm in layers.items() if norm > 0}
        if len(layers) > 1:
            most = max(layers, key=layers.__getitem__)
            if layers[most] > 1.5 * median(layers.values()):
                yield f"{name} changes layer {most} most, by {percent(layers[most], 1)}."


def _beside(comparison: Comparison) -> Iterator[str]:
    names = comparison.names
    for name, tokens in zip(names, comparison.tokenizers, strict=True):
        if tokens.moved:
            yield (
                f"{tokens.moved} tokens of {name} have other ids than in {names[0]}: set "
                "tokenizer_source in the recipe, or rows of different tokens are merged."
            )
    if comparison.left_out:
        n, first = len(comparison.left_out), next(iter(comparison.left_out.items()))
        yield f"{n} weight{'s' * (n > 1)} not compared, first {first[0]}: {first[1]}."


def percent(share: float, digits: int = 0) -> str:
    """Write a share in percent."""
    return f"{100 * share:.{digits}f} %"
