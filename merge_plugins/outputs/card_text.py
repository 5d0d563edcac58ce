"""Write the sections of a model card: licenses, usage, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from merge_plugins.outputs.licenses import License, strictest
from merge_plugins.outputs.scores import Score, as_table
from merge_plugins.planning import Plan


class Kind(NamedTuple):
    """How a model is loaded and what for, in the hub's words."""

    library: str
    task: str | None
    """The hub's pipeline tag."""
    auto_class: str = "AutoModel"


KINDS: Mapping[str, tuple[str, str]] = {
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
    "ForConditionalGeneration": ("text2text-generation", "AutoModelForSeq2SeqLM"),
}
"""Pipeline tag and Auto class by the end of an architecture's name."""


def kind(plan: Plan) -> Kind:
    """Find out how a merge is loaded, from its config."""
    if plan.embedding is not None:
        return Kind("sentence-transformers", "sentence-similarity", "SentenceTransformer")
    names = plan.config.get("architectures") or [""]
    if "vision_config" in plan.config:
        return Kind("transformers", "image-text-to-text", "AutoModelForImageTextToText")
    found = (KINDS[end] for end in KINDS if str(names[0]).endswith(end))
    return Kind("transformers", *next(found, (None, "AutoModel")))


def licensing(licenses: Mapping[str, License | None]) -> str:
    """Write the section on licenses: what each model's card states, and which asks most."""
    rows = "\n".join(f"| {model} | {one or 'none stated'} |" for model, one in licenses.items())
    table = f"## License\n\n| model | license |\n|---|---|\n{rows}\n\n"
    unknown = [model for model, one in licenses.items() if one is None]
    most = strictest(one for one in licenses.values() if one is not None)
    lines = [f"The most restrictive that is stated is {most}."] if most else []
    if unknown:
        lines.append(f"The terms of {', '.join(unknown)} are unknown, and so are the merge's.")
    return f"{table}{' '.join(['The terms of all of them apply to the merge.', *lines])}\n\n"


def usage(kind: Kind, name: str) -> str:
    """Write the section with a few lines that load the model by its name."""
    if kind.library == "sentence-transformers":
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{name}")\n'
            'vectors = model.encode(["A text.", "Another."])\n'
        )
    else:
        tokenizer = "AutoProcessor" if "Image" in kind.auto_class else "AutoTokenizer"
        code = (
            f"from transformers import {', '.join(sorted([kind.auto_class, tokenizer]))}\n\n"
            f'model = {kind.auto_class}.from_pretrained("{name}", dtype="auto")\n'
            f'tokenizer = {tokenizer}.from_pretrained("{name}")\n'
        )
    return f"## Usage\n\n```python\n{code}```\n\n"


def scored(scores: Sequence[Score]) -> str:
    """Write the section of scores; nothing without any."""
    return f"## Scores\n\n{as_table(scores)}\n\n" if scores else ""
