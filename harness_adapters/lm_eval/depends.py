"""Hash what scores depend on besides the recipe, so that others are never taken for them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from harness_adapters.lm_eval.goals import Scored
from harness_adapters.lm_eval.prepared import Tasks
from harness_adapters.lm_eval.prompting import Prompting

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
RELEASES = ("lm_eval", "torch", "transformers")


def identity(
    tasks: Tasks, scored: Iterable[Scored], prompting: Prompting, options: Mapping[str, Any]
) -> str:
    """Hash tasks, their documents and metrics, prompts, model arguments, releases: 16 hex digits.

    ``options``: those of the model on which its answers depend.
    """
    content = {
        "tasks": {
            name: [task.VERSION, _config(task), [_hash(doc) for doc in task.eval_docs]]
            for name, task in tasks.tasks.items()
        },
        "metrics": {each.name: [each.metric, each.filter] for each in scored},
        "prompting": asdict(prompting),
        "options": dict(options),
        "releases": {name: version(name) for name in RELEASES},
    }
    return _hash(content)


def _config(task: Any) -> Any:
    """Return a task's settings without those of this process."""
    return ADDRESS.sub("", json.dumps(task.dump_config(), sort_keys=True, default=str))


def _hash(content: Any) -> str:
    """Hash JSON; of a value that has no JSON, only its type counts."""
    text = json.dumps(content, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
