"""Score merges and checkpoints by lm-eval in vLLM; print answers and what is recorded as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from merge_plugins import Recipe


def main() -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.vllm_causallms import VLLM
    from lm_eval.tasks import TaskManager

    from harness_adapters.lm_eval import Evaluator

    options, tasks, folder, checkpoints, recipes, inline = json.loads(sys.stdin.read())
    batches = []
    run = VLLM._model_generate

    def counting(self: Any, requests: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(len(requests))
        return run(self, requests, *args, **kwargs)

    VLLM._model_generate = counting
    manager = TaskManager(include_path=folder, include_defaults=False)

    def alone(model: str, arguments: dict[str, Any]) -> Any:
        return simple_evaluate(
            model, {**arguments, **options}, tasks, task_manager=manager, bootstrap_iters=0
        )

    found: list[dict[str, Any]] = []

    def keep(results: Any, engine: int) -> None:
        samples = {
            task: [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
            for task, rows in results["samples"].items()
        }
        merge = results["config"].get("merge", {})
        found.append(
            {
                "samples": samples,
                "digest": merge.get("digest"),
                "model": results["config"]["model_args"].get("model"),
                "n_asked": sum(batches),
                "engine": engine,
            }
        )
        batches.clear()

    for checkpoint in checkpoints:
        keep(alone("vllm", {"pretrained": checkpoint}), 0)
    if recipes:
        settings = {"include_path": folder, "bootstrap_iters": 0, "use_cache": "answers"}
        with Evaluator(tasks, model="merged-vllm", model_args=options, **settings) as evaluator:
            for recipe in recipes:
                results = evaluator.results(Recipe.load(recipe))
                keep(results, id(evaluator.live(Recipe.load(recipe)).model))
    if inline:
        keep(alone("merged-vllm", inline), 0)
    print("FOUND" + json.dumps(found, default=str))


if __name__ == "__main__":  # vLLM starts its workers by spawning
    main()
