"""Generates one problem at a time, each process its share, and scores in the first process."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from bigcode_eval import tasks


class Evaluator:
    def __init__(self, accelerator: Any, model: Any, tokenizer: Any, args: Any) -> None:
        self.accelerator, self.model = accelerator, model
        self.tokenizer, self.args = tokenizer, args

    def generate_text(
        self, task_name: str, intermediate_generations: Any = None
    ) -> tuple[list[list[str]], list[str]]:
        task, args = tasks.get_task(task_name, self.args), self.args
        docs = task.get_dataset()
        end = args.limit_start + args.limit if args.limit else len(docs)
        wanted = [*range(args.limit_start, min(end, len(docs)))]
        references = [task.get_reference(docs[i]) for i in wanted]
        if args.load_generations_path:
            held = json.loads(Path(args.load_generations_path).read_text())
            return held[: len(wanted)], references
        known = [each for each in intermediate_generations or [] if each]
        answers = self._answers(task, docs, wanted[len(known) :])
        return known + [answers[i] for i in wanted[len(known) :]], references

    def _answers(self, task: Any, docs: Any, wanted: list[int]) -> dict[int, list[str]]:
        n_processes = self.accelerator.num_processes
        even = wanted + wanted[: -len(wanted) % n_processes]  # the harness answers some twice, too
        task.stop_words.append(self.tokenizer.eos_token)
        self.model.to(self.accelerator.device)
        own = [
            (i, task.postprocess_generation(text, i))
            for i in even[self.accelerator.process_index :: n_processes]
            for text in self._generate(task.get_prompt(docs[i]))
        ]
        found = defaultdict(list)
        for i, text in gather_object(own):
            found[i].append(text)
        return found

    def _generate(self, prompt: str) -> list[str]:
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        sampling = {"temperature": self.args.temperature} if self.args.do_sample else {}
        torch.manual_seed(self.args.seed)
        with torch.no_grad():
            found = self.model.generate(
                input_ids=ids.to(self.accelerator.device),
                max_length=self.args.max_length_generation,
                num_return_sequences=self.args.n_samples,
                do_sample=self.args.do_sample,
                **sampling,
            )
        return self.tokenizer.batch_decode(found)

    def evaluate(self, task_name: str, intermediate_generations: Any = None) -> Any:
        task = tasks.get_task(task_name, self.args)
        if task.requires_execution and not self.args.allow_code_execution:
            raise ValueError("set allow_code_execution")
        generations, references = self.generate_text(
            task_name, intermediate_generations=intermediate_generations
        )
        if not self.accelerator.is_main_process:
            return None
        if not self.args.load_generations_path:
            whole = Path(self.args.save_generations_path)
            path = str(whole.with_name(f"{whole.stem}_{task_name}.json"))
            self.save_json_files(generations, references, path, f"references_{task_name}.json")
        return task.process_results(generations, references)

    def save_json_files(
        self, generations: Any, references: Any, generations_path: str, references_path: str
    ) -> None:
        for wanted, held, path in (
            (self.args.save_generations, generations, generations_path),
            (self.args.save_references, references, references_path),
        ):
            if wanted:
                Path(path).write_text(json.dumps(held))
