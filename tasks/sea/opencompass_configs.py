"""The suite as configs of OpenCompass, in Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness_adapters.commands.sea_data import FILES
from harness_adapters.tasks.sea.suite import DATA, LANGUAGES, METRICS, NOTICE, SUITE, Config, pieces

READ_BASE = f'''"""{NOTICE}"""

from mmengine.config import read_base

with read_base():
'''
HEAD = '''"""{data} in {language}. {notice}"""

from opencompass.openicl.icl_inferencer import {inferencer}
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import {ours}

'''


def files() -> Iterator[tuple[Path, str]]:
    """Yield each file, relative to the folder of configs, and its text."""
    for config in SUITE:
        name = f"{config.opencompass}_{prompt_hash(config)[:6]}"
        folder = Path("datasets") / f"sea_{config.data}"
        yield folder / f"{name}.py", dataset(config)
        alias = f"    from .{name} import {config.variable}\n"
        yield folder / f"{config.opencompass}.py", READ_BASE + alias
    yield Path("dataset_collections") / "sea.py", collection()
    yield Path("summarizers") / "sea.py", summarizer()


def prompt_hash(config: Config) -> str:
    """Return what OpenCompass's `get_prompt_hash` says of a config, without importing it."""
    return hashlib.sha256(json.dumps(infer_cfg(config), sort_keys=True).encode()).hexdigest()


def infer_cfg(config: Config) -> dict[str, Any]:
    """Return how OpenCompass asks, as it reads it from the config: types by their whole names."""
    return _infer_cfg(config, _template(config), "opencompass.openicl.icl_{}.{}".format)


def dataset(config: Config) -> str:
    """Return a config of OpenCompass; one list holds what all answers have before them."""
    evaluator = "".join(word.title() for word in config.score.split("_")) + "Evaluator"
    whole = _template(config)
    asked = (whole[config.labels[0]] if config.choices else whole)["round"][:-1]

    def after(answer: Mapping[str, Any]) -> dict[str, Any]:
        return {"begin": Name("_begin"), "round": [Name("*_asked"), answer["round"][-1]]}

    template = {k: after(v) for k, v in whole.items()} if config.choices else after(whole)
    made = {
        "abbr": config.abbr,
        "type": Name("SeaDataset"),
        "path": config.file,
        "reader_cfg": {"input_columns": list(config.columns), "output_column": config.answer},
        "infer_cfg": _infer_cfg(config, template, lambda _, name: Name(name)),
        "eval_cfg": {"evaluator": {"type": Name(evaluator)}, "pred_role": "BOT"},
    }
    head = HEAD.format(
        data=DATA[config.data],
        language=LANGUAGES[config.language],
        notice=NOTICE,
        inferencer=_inferencer(config),
        ours=", ".join(sorted((evaluator, "SeaDataset"))),
    )
    variables = {"_begin": [_system(config)], "_asked": asked, config.variable: [made]}
    body = "".join(f"{name} = {to_python(value)}\n" for name, value in variables.items())
    return head + body


def _infer_cfg(config: Config, template: Any, named: Callable[[str, str], str]) -> dict[str, Any]:
    inferencer = {
        "type": named("inferencer", _inferencer(config)),
        "generation_kwargs": {"do_sample": False},
        **({"batch_size": config.batch_size} if config.batch_size else {}),
        **({"max_out_len": config.max_out_len} if config.max_out_len else {}),
    }
    return {
        "prompt_template": {
            "type": named("prompt_template", "PromptTemplate"),
            "template": template,
        },
        "retriever": {"type": named("retriever", "ZeroRetriever")},
        "inferencer": inferencer,
    }


def _inferencer(config: Config) -> str:
    return "PPLInferencer" if config.choices else "GenInferencer"


def _template(config: Config) -> dict[str, Any]:
    """Return the template: of one prompt, or one for each answer to choose from."""
    if not config.choices:
        return _messages(config)
    answers = zip(config.labels, config.choices, strict=True)
    return {label: _messages(config, f"{{{column}}}") for label, column in answers}


def _messages(config: Config, answer: str = "") -> dict[str, Any]:
    turns = pieces(config.prompt, answer)[1:]
    roles = ("HUMAN", "BOT") * (len(turns) // 2)
    pairs = zip(roles, turns, strict=True)
    return {
        "begin": [_system(config)],
        "round": [{"role": role, "prompt": prompt} for role, prompt in pairs],
    }


def _system(config: Config) -> dict[str, Any]:
    instruction = pieces(config.prompt)[0]
    return {"role": "SYSTEM", "fallback_role": "HUMAN", "prompt": instruction}


def collection() -> str:
    """Return a config that imports all others."""
    imports = "".join(
        f"    from ..datasets.sea_{config.data}.{config.opencompass} import {config.variable}\n"
        for config in sorted(SUITE, key=lambda config: (config.data, config.opencompass))
    )
    names = [Name(f"*{config.variable}") for config in SUITE]
    return f"{READ_BASE}{imports}\ndatasets = {to_python(names)}\n"


def summarizer() -> str:
    """Return a summarizer; M3Exam's parts are averaged by their number of rows."""
    metrics = [
        [config.abbr, "EM" if metric == "acc" else metric.upper()]
        for config in SUITE
        for metric in METRICS[config.score]
        if metric != "acc_norm"
    ]
    groups = []
    for language in LANGUAGES:
        parts = [config for config in SUITE if config.number and config.language == language]
        if parts:
            metrics.append([f"sea-m3exam-{language}-ppl", "EM"])
            weighted = {
                "subsets": [[config.abbr, "EM"] for config in parts],
                "weights": {config.abbr: FILES[config.file].n_rows for config in parts},
            }
            groups.append({"name": f"sea-m3exam-{language}-ppl", "metric": "EM", **weighted})
    made = {"dataset_abbrs": metrics, "summary_groups": groups}
    title = f'"""The South-East-Asian suite. {NOTICE}"""'
    return f"{title}\n\nsummarizer = {to_python(made)}\n"


class Name(str):
    """A name in Python rather than a text."""


def to_python(value: Any, deep: str = "") -> str:
    """Return a value as Python in OpenCompass's style, as ruff would lay it out."""
    inner = deep + "    "
    if isinstance(value, dict):
        if all(key.isidentifier() and len(key) > 1 for key in value):
            items = [f"{key}={to_python(part, inner)}" for key, part in value.items()]
            opening, closing = "dict(", ")"
        else:
            items = [f'"{key}": {to_python(part, inner)}' for key, part in value.items()]
            opening, closing = "{", "}"
    elif isinstance(value, list):
        items = [to_python(part, inner) for part in value]
        opening, closing = "[", "]"
    else:
        return _literal(value)
    if len(value) == 1 and not isinstance(next(iter(value)), dict | list) and "\n" not in items[0]:
        return f"{opening}{items[0]}{closing}"
    lines = "".join(f"{inner}{item},\n" for item in items)
    return f"{opening}\n{lines}{deep}{closing}"


def _literal(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Name):
        return str(value)
    if "\n" in value[:-1]:
        body = value.removesuffix("\n").replace("\\", "\\\\")
        return f'"""{body}"""' + (' "\\n"' if value.endswith("\n") else "")
    quoted = json.dumps(value, ensure_ascii=False)
    return quoted if '"' not in value else "'" + quoted[1:-1].replace('\\"', '"') + "'"
