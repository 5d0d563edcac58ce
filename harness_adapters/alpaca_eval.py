"""Score merges with alpaca_eval: its command line, with a decoder that merges as it loads.

``python -m harness_adapters.alpaca_eval evaluate_from_model --model_configs merged.yaml …`` is
alpaca_eval's command with two differences: a config may have ``fn_completions: merged``, and then
``model_name`` is a recipe; and a model's name gets a digest of all that its outputs depend on,
because alpaca_eval reuses any outputs in ``results/<name>``.

``python -m harness_adapters.alpaca_eval outputs recipe.yaml --out model_outputs.json`` only writes
the outputs, for alpaca_eval's ``--model_outputs``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_adapters import generation
from harness_adapters.ending import exit_status
from harness_adapters.generation import Generator
from merge_plugins import identity
from merge_plugins.errors import DataError, MergeError, RecipeError, did_you_mean, first_line
from merge_plugins.installing import to_install
from merge_plugins.plugins import load_plugins
from merge_plugins.recipe import read_recipe
from merge_plugins.recipe.parsing import from_yaml
from merge_plugins.recipe.short_form_values import plugins

DECODER = ("merged", "harness_adapters.alpaca_eval:completions")
"""Names of `completions` in ``fn_completions``."""
PROMPTS: Mapping[str, Path] = {
    file.stem: file for file in sorted((Path(__file__).parent / "prompts").glob("*.txt"))
}
"""The papers' templates: ``vicuna`` for WizardLM-13B and -70B, ``wizardlm-7b`` for the 7B model."""
SAME_OUTPUTS = ("model_name", "plugin", "batch_size", "device")
"""Keys of ``completions_kwargs`` that no output depends on, or only by the recipe's digest."""
REPOSITORY = "tatsu-lab/alpaca_eval"
INSTRUCTIONS = 805

_generators: dict[str, Generator] = {}
"""Live merges of this run, kept because alpaca_eval calls its decoder once for every 64 rows."""


def completions(
    prompts: Sequence[str],
    model_name: str,
    *,
    max_new_tokens: int = 2048,
    batch_size: int = 1,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    plugin: str | Sequence[str] | None = None,
    stop: Sequence[str] = (),
    **generation: Any,
) -> dict[str, list[Any]]:
    """Answer prompts with a merge; the signature and result are those of alpaca_eval's decoders.

    ``model_name``: a recipe's file, folder or short form. ``plugin``: a Python file that is run for
    its methods. ``generation``: arguments of transformers' ``generate``.
    """
    load_plugins(plugins(plugin))
    recipe = read_recipe(model_name).trusting(trust_remote_code)
    key = json.dumps([identity.digest(recipe), batch_size, dtype, device])
    if key not in _generators:
        _generators[key] = Generator(
            recipe,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            trust_remote_code=trust_remote_code,
        )
    started = time.monotonic()
    answers = _generators[key].complete(
        prompts, max_new_tokens=max_new_tokens, stop=stop, task="alpaca_eval", **generation
    )
    seconds = (time.monotonic() - started) / max(1, len(prompts))
    return {
        "completions": answers,
        "price_per_example": [math.nan] * len(answers),
        "time_per_example": [seconds] * len(answers),
    }


def evaluate_from_model(
    model_configs: Any,
    reference_model_configs: Any = None,
    evaluation_dataset: Any = None,
    output_path: Any = "auto",
    **options: Any,
) -> Any:
    """Run alpaca_eval's command of this name, with merges among its models.

    ``evaluation_dataset``: default: the 805 instructions with alpaca_eval's own references.
    """
    harness = _harness()
    models = resolve(model_configs, options)
    references = None
    if reference_model_configs is not None:
        references = resolve(reference_model_configs, options)
    for file, configs in (("model_outputs.json", models), ("reference_outputs.json", references)):
        if configs is not None and output_path is not None:
            (name,) = configs
            folder = Path("results") / name if output_path == "auto" else Path(output_path)
            refuse_others(folder / file, name)
    if evaluation_dataset is None:
        evaluation_dataset = str(_instructions(harness.constants.IS_ALPACA_EVAL_2))
    _generators.clear()
    try:
        return harness.main.evaluate_from_model(
            models,
            references,
            evaluation_dataset=evaluation_dataset,
            output_path=output_path,
            **options,
        )
    finally:
        _generators.clear()


def resolve(given: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a model's config to alpaca_eval's format, with our decoder as a function.

    ``given``: a YAML file, whose paths are relative to it, a folder with ``configs.yaml``, or the
    content of such a file. ``options``: the command's; those that change outputs are hashed into
    the model's name.
    """
    folder, configs = _read(given)
    if not isinstance(configs, dict) or len(configs) != 1:
        raise RecipeError(f"{given}: a config is one model, NAME: {{prompt_template: …}}")
    ((name, config),) = copy.deepcopy(configs).items()
    if not isinstance(config, dict):
        raise RecipeError(f"{given}: {name} is a mapping with prompt_template, fn_completions, …")
    decoder = config.get("fn_completions")
    if decoder not in DECODER:
        if isinstance(decoder, str) and (":" in decoder or did_you_mean(decoder, DECODER)):
            raise RecipeError(f"{given}: fn_completions: {decoder} is no decoder; write merged")
        return {name: config}  # one of alpaca_eval's own
    settings = config.get("completions_kwargs")
    if not isinstance(settings, dict) or "model_name" not in settings:
        raise RecipeError(f"{given}: {name} needs completions_kwargs: {{model_name: RECIPE}}")
    template = _template(config.get("prompt_template"), folder)
    recipe = str(settings["model_name"])
    if "=" not in recipe:
        settings["model_name"] = recipe = str((folder / Path(recipe).expanduser()).absolute())
    if "plugin" in settings:
        files = (folder / Path(file).expanduser() for file in plugins(settings["plugin"]))
        settings["plugin"] = [str(file.absolute()) for file in files]
        load_plugins(settings["plugin"])
    trusted = bool(settings.get("trust_remote_code"))
    digest = identity.digest(read_recipe(recipe).trusting(trusted))
    decided = {key: value for key, value in settings.items() if key not in SAME_OUTPUTS}
    decided["is_strip_output"] = options.get("is_strip_output", True)
    decided["prompt"] = template.read_text(encoding="utf-8")
    text = json.dumps(decided, sort_keys=True, default=str)
    stamp = hashlib.sha256(text.encode()).hexdigest()[:6]
    config |= {"fn_completions": completions, "prompt_template": str(template)}
    return {f"{name}-{digest}-{stamp}": config}


def _read(given: Any) -> tuple[Path, Any]:
    """Read a config; return the folder that its paths are relative to, and its content."""
    if isinstance(given, dict):
        return Path.cwd(), given
    file = Path(given).expanduser()
    if file.is_dir():
        file /= "configs.yaml"
    if not file.is_file():
        own = Path(_harness().constants.MODELS_CONFIG_DIR) / given
        file = own / "configs.yaml" if own.is_dir() else own
    if not file.is_file():
        raise RecipeError(f"no config at {given}; name a YAML file, or a model of alpaca_eval")
    return file.absolute().parent, from_yaml(file.read_text(encoding="utf-8"))


def _template(given: Any, folder: Path) -> Path:
    """Find the file of a prompt template: one of `PROMPTS`, the user's, or alpaca_eval's."""
    if not isinstance(given, str):
        raise RecipeError(f"prompt_template: {given!r}; write {', '.join(PROMPTS)}, or a file")
    own = Path(_harness().constants.MODELS_CONFIG_DIR) / given
    for file in (folder / Path(given).expanduser(), PROMPTS.get(given, own)):
        if file.is_file():
            return file.absolute()
    raise RecipeError(
        f"prompt_template: there is no {folder / given}; write {', '.join(PROMPTS)}, or a "
        "file with {instruction} in it, relative to the config"
    )


def refuse_others(file: Path, name: str) -> None:
    """Raise `MergeError` if a file has outputs of another model: alpaca_eval would reuse them."""
    if not file.is_file():
        return
    others = {row.get("generator") for row in _rows(file)} - {name}
    if others:
        raise MergeError(
            f"{file} holds outputs of {', '.join(map(str, others))}, not of {name}; remove "
            "it, or choose another --output_path"
        )


def outputs(argv: Sequence[str]) -> int:
    """Write model_outputs.json: an answer to every instruction, or no file."""
    parser = argparse.ArgumentParser(
        prog="python -m harness_adapters.alpaca_eval outputs", description=outputs.__doc__
    )
    generation.add_arguments(parser, max_new_tokens=2048)
    parser.add_argument(
        "--instructions",
        type=Path,
        metavar="JSON",
        help=f"a list of {{instruction: …}}; default: the {INSTRUCTIONS} of AlpacaEval",
    )
    parser.add_argument(
        "--prompt", default="vicuna", help=f"{', '.join(PROMPTS)} or a template's file (vicuna)"
    )
    parser.add_argument("--name", help="what the generator is called, before the digest")
    parser.add_argument("--stop", action="append", default=[], help="a text that ends an answer")
    options = parser.parse_args(argv)
    generator = generation.generator(options)
    template = _template(options.prompt, Path.cwd()).read_text(encoding="utf-8")
    if "{instruction}" not in template:
        raise RecipeError(f"--prompt {options.prompt}: the template has no {{instruction}}")
    rows = _rows(options.instructions or _instructions(False))
    if options.instructions is None and len(rows) != INSTRUCTIONS:
        raise DataError(f"AlpacaEval has {INSTRUCTIONS} instructions; the hub gave {len(rows)}")
    rows = rows[: options.limit]
    answers = generator.complete(
        [template.replace("{instruction}", row["instruction"]) for row in rows],
        max_new_tokens=options.max_new_tokens,
        stop=options.stop,
        task="alpaca_eval",
    )
    recipe = generator.recipe
    name = f"{options.name}-{identity.digest(recipe)}" if options.name else identity.label(recipe)
    kept = [{key: row[key] for key in ("dataset", "instruction") if key in row} for row in rows]
    written = [
        {**row, "output": answer.strip(), "generator": name}  # as alpaca_eval strips
        for row, answer in zip(kept, answers, strict=True)
    ]
    generation.write(options.out, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    print(f"{options.out}: {len(written)} outputs of {name}")
    return 0


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects with an ``instruction`` each."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(f"{file}: {exc}") from exc
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list of {{instruction: …}} is expected, and not an empty one")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
            raise DataError(f"{file}: row {i} has no text under instruction: {row!r:.80}")
    return rows


def _instructions(gpt4_references: bool) -> Path:
    """Download the file of all instructions, with references by GPT-4 or text-davinci-003.

    alpaca_eval itself uses the repository's loading script, which datasets 4 does not support.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = "alpaca_eval_gpt4_baseline.json" if gpt4_references else "alpaca_eval.json"
    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise DataError(
            f"the hub did not give {name} of {REPOSITORY} ({first_line(exc)}); name a "
            "JSON file with --evaluation_dataset or, for outputs, --instructions"
        ) from exc


def _harness() -> Any:
    try:
        import alpaca_eval.main
    except ImportError as exc:
        raise MergeError(f"{exc}: {to_install('alpaca')}") from exc
    return alpaca_eval


def main() -> int:
    """Run ``outputs``, or one of alpaca_eval's own commands."""
    if sys.argv[1:2] == ["outputs"]:
        return outputs(sys.argv[2:])
    functions = {**_harness().main.ALL_FUNCTIONS, "evaluate_from_model": evaluate_from_model}
    import fire

    fire.Fire(functions, name="python -m harness_adapters.alpaca_eval")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
