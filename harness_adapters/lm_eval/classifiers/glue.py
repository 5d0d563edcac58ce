"""Know the data sets of GLUE: their columns of text, and the names of their labels in order."""

from __future__ import annotations

from collections.abc import Mapping

from merge_plugins.recipe import Task

ENTAILED = ("entailment", "not_entailment")

GLUE: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable")),
        Task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        Task("qnli", ("question", "sentence"), ENTAILED),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        Task("rte", ("sentence1", "sentence2"), ENTAILED),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("stsb", ("sentence1", "sentence2")),
        Task("wnli", ("sentence1", "sentence2"), ENTAILED[::-1]),
    )
}
"""Columns and labels of each task, by lm-eval's name; a number answers one without labels."""
SAME_HEAD: Mapping[str, str] = {"mnli_mismatch": "mnli"}
"""Tasks of lm-eval that the head of another one answers."""
EIGHT = "glue8"
"""Our group of the tasks that papers on merging score: all but WNLI."""
