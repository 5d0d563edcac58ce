"""The suite as tasks and groups of lm-eval, in YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from harness_adapters.tasks.sea.suite import LANGUAGES, METRICS, NOTICE, SUITE, Config, pieces

LIKELIHOOD = (
    "acc takes the answer with the highest log-likelihood after the prompt. Sailor's EM takes the "
    "lowest perplexity of prompt and answer together, which lm-eval cannot tell: it is scored in "
    "OpenCompass."
)
VERSION = {"version": 1.0}


def files() -> Iterator[tuple[Path, str]]:
    """Yield the name of each file, and its text."""
    for config in SUITE:
        yield Path(f"{config.lm_eval}.yaml"), to_yaml(task(config))
    for group in groups():
        yield Path(f"{group['group']}.yaml"), to_yaml(group)


def task(config: Config) -> dict[str, Any]:
    """Return a task of lm-eval; its prompt is OpenCompass's, byte for byte."""
    *before, question, label = pieces(config.prompt)
    for column in config.columns:
        question = question.replace(f"{{{column}}}", f"{{{{{column}}}}}")
    means = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": config.lm_eval,
        "custom_dataset": Function("rows"),
        "dataset_kwargs": {"file": config.file},
        "test_split": "test",
        "num_fewshot": 0,
        "description": "\n".join(before) + "\n",
        "doc_to_text": f"{question}\n{label}",
        **(_chosen(config) if config.choices else _written(config)),
        "metric_list": [{"metric": metric, **means} for metric in METRICS[config.score]],
        "metadata": {**VERSION, "note": LIKELIHOOD} if config.choices else VERSION,
    }


def _written(config: Config) -> dict[str, Any]:
    first = "[0]" if config.score == "any_answer" else ""
    # No stop string, as in OpenCompass: F1 cuts words by the language of all that was written.
    limits = {"until": [], "do_sample": False, "max_gen_toks": config.max_out_len}
    return {
        "output_type": "generate_until",
        "doc_to_target": f"{{{{{config.answer}{first}}}}}",
        "generation_kwargs": limits,
        "process_results": Function(config.score),
    }


def _chosen(config: Config) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": f"{{{{[{', '.join(config.choices)}]}}}}",
        "doc_to_target": f'{{{{"{config.labels}".index({config.answer})}}}}',
    }


def groups() -> Iterator[dict[str, Any]]:
    """Yield the groups: M3Exam's parts by number of answers, each language, and all of them."""
    by_size = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    for language in LANGUAGES:
        ours = [config for config in SUITE if config.language == language]
        tasks = [config.lm_eval for config in ours if not config.number]
        parts = [config.lm_eval for config in ours if config.number]
        if parts:
            tasks.append(f"sea_m3exam_{language}_ll")
            weighted = {"task": parts, "aggregate_metric_list": [by_size], "metadata": VERSION}
            yield {"group": tasks[-1], **weighted}
        yield {"group": f"sea_{language}", "task": tasks, "metadata": VERSION}
    yield {"group": "sea", "task": [f"sea_{code}" for code in LANGUAGES], "metadata": VERSION}


class Function(str):
    """The name of a function in utils.py."""


class Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and functions as lm-eval reads them."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat what occurs twice."""
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        """Return a text, as a block where it has several lines."""
        style = "|" if "\n" in value else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def function(self, value: Function) -> yaml.ScalarNode:
        """Return a function."""
        return self.represent_scalar("!function", f"utils.{value}")


Dumper.add_representer(str, Dumper.text)
Dumper.add_representer(Function, Dumper.function)


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return a task or a group as YAML."""
    style = {"allow_unicode": True, "sort_keys": False, "width": 10**9}
    return f"# {NOTICE}\n" + yaml.dump(dict(content), Dumper=Dumper, **style)
