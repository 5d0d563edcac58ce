"""Write a merge's programs for HumanEval+ or MBPP+ with evalplus, and score them.

``python -m harness_adapters.evalplus recipe.yaml --dataset humaneval --out samples.jsonl`` runs
evalplus's own code generation with a decoder that merges as it loads; ``evalplus.evaluate
--dataset humaneval --samples samples.jsonl`` or ``--score --allow-code-execution`` scores them.
Do not use ``--backend hf`` of evalplus 0.3.1 instead: after some prompts it ends answers at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from evalplus.codegen import codegen
from evalplus.data import get_human_eval_plus, get_mbpp_plus
from evalplus.provider.base import DecoderBase
from evalplus.provider.utility import EOS, extra_eos_for_direct_completion, make_raw_chat_prompt

from harness_adapters import execution, generation
from harness_adapters.ending import exit_status
from harness_adapters.generation import Generator
from merge_plugins import identity
from merge_plugins.errors import MergeError

PROBLEMS = {"humaneval": get_human_eval_plus, "mbpp": get_mbpp_plus}
OVERRIDES = ("HUMANEVAL_OVERRIDE_PATH", "MBPP_OVERRIDE_PATH", "XDG_CACHE_HOME")
"""Variables that name files with other problems, and where evalplus keeps its own."""
ASKED = (
    "Please provide a self-contained Python script that solves the following problem in a markdown "
    "code block:"
)
BEGUN = (
    "Below is a Python script with a self-contained function that solves the problem and passes "
    "corresponding tests:"
)
"""What a chat model is asked for, and how its answer begins: evalplus's words."""


class MergedDecoder(DecoderBase):
    """Answer evalplus's prompts with a merge, greedily and in batches.

    evalplus asks for one program after the other; the first call answers all ``prompts``.
    """

    def __init__(
        self,
        generator: Generator,
        dataset: str,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        force_base_prompt: bool,
    ) -> None:
        super().__init__(
            identity.label(generator.recipe), temperature=0.0, max_new_tokens=max_new_tokens
        )
        self._generator, self._prompts, self._dataset = generator, tuple(prompts), dataset
        self._force_base_prompt = force_base_prompt
        fence = ["\n```\n"]
        own = extra_eos_for_direct_completion(dataset) if self.is_direct_completion() else fence
        self.eos = [*EOS, *own]

    def is_direct_completion(self) -> bool:
        """Return True if answers continue the prompt, False if they hold it again."""
        return self._force_base_prompt or self._generator.tokenizer.chat_template is None

    def codegen(self, prompt: str, do_sample: bool = True, num_samples: int = 200) -> list[str]:
        """Return the program for one of the prompts."""
        return [self._programs[prompt]]

    @cached_property
    def _programs(self) -> dict[str, str]:
        answers = self._generator.complete(
            [*map(self._asked, self._prompts)],
            max_new_tokens=self.max_new_tokens,
            stop=self.eos,
            task=self._dataset,
        )
        programs = [answer.replace("\t", "    ") for answer in answers]  # as evalplus's own
        return dict(zip(self._prompts, programs, strict=True))

    def _asked(self, prompt: str) -> str:
        if self.is_direct_completion():
            return prompt
        tokenizer = self._generator.tokenizer
        return str(make_raw_chat_prompt(prompt, ASKED, BEGUN, tokenizer))


def main(argv: Sequence[str] | None = None) -> int:
    """Write a program for every problem, or no file."""
    parser = argparse.ArgumentParser(
        prog="python -m harness_adapters.evalplus", description=main.__doc__
    )
    generation.add_arguments(parser, max_new_tokens=768)
    execution.add_arguments(parser)
    parser.add_argument("--dataset", required=True, choices=[*PROBLEMS], help="of evalplus")
    parser.add_argument(
        "--force-base-prompt", action="store_true", help="no chat template, even if there is one"
    )
    options = parser.parse_args(argv)
    check(options)
    generator = generation.generator(options)
    problems = PROBLEMS[options.dataset]()
    names = [*problems][: options.limit]
    decoder = MergedDecoder(
        generator,
        options.dataset,
        [f"{problems[name]['prompt'].strip()}\n" for name in names],  # as codegen asks
        max_new_tokens=options.max_new_tokens,
        force_base_prompt=options.force_base_prompt,
    )
    write(options.out, decoder, options.dataset, names)
    print(f"{options.out}: {len(names)} programs of {decoder.name}", flush=True)
    if options.score:
        score(options.out, options.dataset)
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise `MergeError` for options that do not go together, or files that another run wrote."""
    execution.check_consent(options)
    if options.out.suffix != ".jsonl":
        raise MergeError(f"--out {options.out}: evalplus wants a name that ends with .jsonl")
    if options.score and options.limit is not None:
        raise MergeError("--score needs every problem: evalplus scores no part; drop --limit")
    for file in (raw(options.out), results(options.out)):  # evalplus would report what is there
        generation.new_file(file)


def raw(samples: Path) -> Path:
    """Return evalplus's file beside the samples: whole answers, as the model gave them."""
    return samples.with_suffix(".raw.jsonl")


def results(samples: Path) -> Path:
    """Return evalplus's file of results beside the samples."""
    return samples.with_name(f"{samples.stem}_eval_results.json")


def write(out: Path, decoder: MergedDecoder, dataset: str, names: Sequence[str]) -> None:
    """Run evalplus's code generation on these problems, the first of the data set."""
    first, last = (int(name.partition("/")[2]) for name in (names[0], names[-1]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.jsonl"
        codegen(str(file), decoder, dataset, greedy=True, id_range=(first, last + 1))
        generation.write(raw(out), raw(file).read_text(encoding="utf-8"))
        generation.write(out, file.read_text(encoding="utf-8"))


def score(samples: Path, dataset: str) -> None:
    """Run evalplus's own scorer; it prints pass@1 and writes ``…_eval_results.json``."""
    given = {name: os.environ[name] for name in OVERRIDES if name in os.environ}
    command = ["-m", "evalplus.evaluate", "--dataset", dataset, "--samples", str(samples)]
    done = subprocess.run([sys.executable, *command], env=execution.environment() | given)
    if done.returncode:
        raise MergeError(f"evalplus's scorer ended with {done.returncode}; the samples are kept")


if __name__ == "__main__":
    sys.exit(exit_status(main))
