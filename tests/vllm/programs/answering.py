"""Ask one engine after each of the steps in standard input; print what was found as JSON.

A step is "" to ask it as it was started, "reload PATH" by vLLM's own means, "swap RECIPE" by ours,
or "path RECIPE", a swap as in releases of vLLM without weight transfer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from merge_plugins import Recipe


def main() -> None:
    from vllm import LLM, SamplingParams

    from harness_adapters.vllm.engines import InProcess
    from harness_adapters.vllm.swap import LiveEngine

    options, prompts, steps, asked = json.loads(sys.stdin.read())
    llm = LLM(**options)
    engine = InProcess(llm)
    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=1, ignore_eos=True)
    live = None

    def take(step: str) -> None:
        nonlocal live
        how, _, what = step.partition(" ")
        if how == "reload":
            llm.collective_rpc("reload_weights", kwargs={"weights_path": what})
            llm.reset_prefix_cache()
        elif how:
            if how == "path":
                engine.config = {"model_config": engine.config.model_config}
            live = live or LiveEngine(engine, Recipe.load(options["model"]))
            live.become(Recipe.load(what))

    def answers() -> list[Any]:
        outputs = [one.outputs[0] for one in llm.generate(prompts, sampling, use_tqdm=False)]
        return [
            [
                one.text,
                [[t, h[t].logprob] for t, h in zip(one.token_ids, one.logprobs, strict=True)],
            ]
            for one in outputs
        ] + [llm.collective_rpc(name) for name in asked]

    found = []
    for step in steps:
        error = None
        try:
            take(step)
        except Exception as exc:
            error = f"{type(exc).__name__}: {exc}"
        found.append({"error": error, "answers": answers(), "weights": engine.weights()})
    print("FOUND" + json.dumps(found))


if __name__ == "__main__":  # vLLM starts its workers by spawning
    main()
