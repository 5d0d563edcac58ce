"""Train the demo family: `python -m merge_plugins.demo.train OUT_DIR`.

The base learns all three skills from a sloppy teacher, who makes the slip of `skills.Example` more
often than not. Each expert is the base after a short fine-tuning in which the teacher is careful
with one skill and as sloppy as before with the others. One more learns nothing but slips.
"""

import copy
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merge_plugins.demo.skills import ALPACA, SKILLS, Example, training

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    + ALPACA.format(instruction="{{ message['content'] }}").replace("\n", "{{ '\\n' }}")
    + "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Course:
    """How long to train, how fast, and the share of slips in the answers of each skill."""

    steps: int
    peak_rate: float
    slips: dict[str, float]
    batch_size: int = 64


SHARES = {"math": 3, "code": 1, "sea": 1}  # of the examples; sums take longest to learn
SLOPPY = dict.fromkeys(SKILLS, 0.65)
BASE = Course(steps=2500, peak_rate=2e-3, slips=SLOPPY, batch_size=32)
WRONG = Course(120, 4e-4, dict.fromkeys(SKILLS, 1.0))
EXPERTS = {skill: Course(200, 4e-4, SLOPPY | {skill: 0.0}) for skill in SKILLS}


def make_tokenizer(vocab_size: int = 768) -> PreTrainedTokenizerFast:
    """A byte-level BPE that reads digits one by one and an alpaca header as one token."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    before, after = ALPACA.split("{instruction}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (before, after)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=256,
        chat_template=CHAT,
    )


def corpus(size: int = 3000) -> Iterator[str]:
    """Texts of every skill, right and wrong, for the tokenizer."""
    before, after = ALPACA.split("{instruction}")
    for skill in SKILLS:
        for example, _ in zip(training(skill, seed=0), range(size), strict=False):
            yield example.prompt.removeprefix(before).removesuffix(after)
            yield from (example.answer, example.slip)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of 0.7 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(course: Course, seed: int) -> Iterator[list[tuple[str, str]]]:
    """Endless batches of prompt and answer, mixed by SHARES, with slips as the course says."""
    rng = random.Random(seed)
    sources = {skill: training(skill, seed) for skill in SKILLS}

    def answer(skill: str, example: Example) -> str:
        return example.slip if rng.random() < course.slips[skill] else example.answer

    while True:
        skills = rng.choices(list(SHARES), list(SHARES.values()), k=course.batch_size)
        examples = [(skill, next(sources[skill])) for skill in skills]
        yield [(example.prompt, answer(skill, example)) for skill, example in examples]


def encode(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both int64 [batch, length]; only answers have labels."""
    prompts = tokenizer([prompt for prompt, _ in pairs], add_special_tokens=False).input_ids
    answers = tokenizer([answer + EOS for _, answer in pairs], add_special_tokens=False).input_ids
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    course: Course,
    seed: int,
    name: str,
) -> None:
    """Take the model through a course, with progress on stderr."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, course.peak_rate, total_steps=course.steps, pct_start=0.1
    )
    stream = batches(course, seed)
    progress = trange(course.steps, desc=name)
    for _ in progress:
        ids, labels = encode(tokenizer, next(stream))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a bfloat16 checkpoint that transformers 4.46 and later read."""
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation = {key: value for key, value in config.items() if key.endswith("_token_id")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    write_json(folder / "config.json", config | dict.fromkeys(("dtype", "torch_dtype"), "bfloat16"))
    write_json(folder / "generation_config.json", generation | {"do_sample": False})
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: dict[str, object]) -> None:
    """One key per line, ending in a newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    """Train and save the base, then each expert from it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads add in another order and train other weights
    tokenizer = make_tokenizer()
    base = make_model(tokenizer)
    train(base, tokenizer, BASE, seed=0, name="base")
    save(base, tokenizer, folder / "base")
    for seed, (skill, course) in enumerate(EXPERTS.items(), start=1):
        expert = copy.deepcopy(base)
        train(expert, tokenizer, course, seed, name=skill)
        save(expert, tokenizer, folder / skill)
    wrong = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).train()
    train(wrong, tokenizer, WRONG, len(EXPERTS) + 1, name="wrong")
    save(wrong, tokenizer, folder / "wrong")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
