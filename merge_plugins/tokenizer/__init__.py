"""Build the merge's tokenizer, and match the models' embedding rows by token."""

from merge_plugins.tokenizer.alignment import Alignment
from merge_plugins.tokenizer.build import (
    aligned,
    chat_template,
    generation_config,
    generation_folder,
    template_of,
    tokenizer_folder,
)

__all__ = [
    "Alignment",
    "aligned",
    "chat_template",
    "generation_config",
    "generation_folder",
    "template_of",
    "tokenizer_folder",
]
