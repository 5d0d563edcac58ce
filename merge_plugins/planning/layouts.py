"""Read the models of a merge in one layout: the donor's names and shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from merge_plugins.planning.names import DERIVED
from merge_plugins.recipe import Reference
from merge_plugins.sources import ComputedCheckpoint, Source
from merge_plugins.weights.modules import in_module, of_modules, of_transformer
from merge_plugins.weights.spelling import NUMBER


def in_one_layout(
    sources: Mapping[Reference, Source], donor: Reference, *, is_stack: bool = False
) -> tuple[Mapping[Reference, Source], Collection[str]]:
    """Read all models in the donor's layout; also list its weights that others need not have.

    In a stack, weights that a model's class does not use are left out: they are of no layer.
    """

    def spelt(source: Source) -> set[str]:
        own = (name for name in source if not name.endswith(DERIVED))
        return {NUMBER.sub("", name) for name in own} if is_stack else {*own}

    whole = sources
    sources = {ref: _transformer_of(source) for ref, source in sources.items()}
    differ = len({frozenset(spelt(source)) for source in sources.values()}) > 1
    if is_stack and any("model_type" in source.config for source in sources.values()):
        from merge_plugins.hf.layout import without_ignored

        sources = {ref: without_ignored(source) for ref, source in sources.items()}
    needless: Collection[str] = ()
    if differ:
        from merge_plugins.hf.layout import one_layout  # seconds: imports transformers

        sources, needless = one_layout(sources, donor)
    return {ref: _with_modules(source, whole[ref]) for ref, source in sources.items()}, needless


def _transformer_of(source: Source) -> Source:
    """Leave out the modules of a sentence-transformers model, which transformers does not know."""
    if not any(map(in_module, source)):
        return source
    return ComputedCheckpoint(source.ref, source.path, source.config, of_transformer(source))


def _with_modules(source: Source, whole: Source) -> Source:
    """Add the modules of a model to its transformer, read in the donor's layout."""
    modules = of_modules(whole)
    if not modules:
        return source
    if dict(source) == of_transformer(whole):
        return whole
    tensors = {**source, **modules}
    return ComputedCheckpoint(source.ref, source.path, source.config, tensors)
