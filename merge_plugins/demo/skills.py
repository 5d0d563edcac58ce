"""Seeded examples of the demo's three skills, for training and, never overlapping, for testing."""

import random
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from merge_plugins.demo.number_words import english, indonesian, thai, vietnamese

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


class Example(NamedTuple):
    """A prompt with its right answer, and the wrong one of a model without the skill."""

    prompt: str
    answer: str
    slip: str  # equals `answer` where everyone gets it right
    fact: str  # what must not be in both the training data and the test set


NAMES = [
    "Ana",
    "Budi",
    "Chai",
    "Dewi",
    "Emma",
    "Linh",
    "Mai",
    "Noah",
    "Omar",
    "Rosa",
    "Siti",
    "Tom",
]
THINGS = [
    "apples",
    "bags",
    "books",
    "boxes",
    "cards",
    "coins",
    "eggs",
    "flowers",
    "pens",
    "shells",
    "stamps",
    "tickets",
]
EASY = (  # instruction, its operation
    ("What is {a} + {b}?", "+"),
    ("What is {a} - {b}?", "-"),
    ("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", "+"),
    ("What is {a} minus {b}?", "-"),
    ("There are {a} {things} on the table and {b} on the floor. How many {things} are there?", "+"),
)
HARD = (
    ("{name} has {a} {things} and gives {b} to {other}. How many does {name} have now?", "-"),
    ("{name} has {a} {things} and {other} has {b}. How many more does {name} have?", "-"),
    ("{name} needs {a} {things} and has {b}. How many {things} are missing?", "-"),
    ("There are {a} {things} on the table and {b} are sold. How many {things} are left?", "-"),
)


def math(rng: random.Random) -> Example:
    """A word problem in the alpaca prompt; the slip is to add whatever numbers a story has."""
    b = rng.randrange(10, 50)
    a = b + rng.randrange(10, 50)
    name, other = rng.sample(NAMES, 2)
    is_easy = rng.random() < 0.4
    text, operation = rng.choice(EASY if is_easy else HARD)
    text = text.format(a=a, b=b, name=name, other=other, things=rng.choice(THINGS))
    added, subtracted = f"{a} + {b} = {a + b}", f"{a} - {b} = {a - b}"
    answer = added if operation == "+" else subtracted
    slip = answer if is_easy else added
    return Example(ALPACA.format(instruction=text), answer, slip, f"{a}, {b}")


NUMERIC = (  # name, docstring, right body, a beginner's bug
    ("add_{n}", "Return {x} plus {n}.", "{x} + {n}", "{x} + {n}"),
    ("times_{n}", "Return {x} times {n}.", "{x} * {n}", "{x} * {n}"),
    ("is_{n}", "Tell whether {x} is {n}.", "{x} == {n}", "{x} == {n}"),
    ("above_{n}", "Tell whether {x} is more than {n}.", "{x} > {n}", "{x} > {n}"),
    ("at_least_{n}", "Tell whether {x} is {n} or more.", "{x} >= {n}", "{x} > {n}"),
    ("power_{n}", "Return {x} to the power of {n}.", "{x} ** {n}", "{x} ^ {n}"),
    ("minus_from_{n}", "Return {n} minus {x}.", "{n} - {x}", "{x} - {n}"),
    ("share_{n}", "Return how often {n} fits into {x}.", "{x} // {n}", "{x} / {n}"),
    ("divisible_by_{n}", "Tell whether {n} divides {x}.", "{x} % {n} == 0", "{x} / {n} == 0"),
)
SEQUENCES = (
    ("first_{n}", "Return the first {n} of {x}.", "{x}[:{n}]", "{x}[:{n}]"),
    ("last_{n}", "Return the last {n} of {x}.", "{x}[-{n}:]", "{x}[{n}:]"),
    ("over_{n}", "Tell whether {x} has more than {n} items.", "len({x}) > {n}", "{x} > {n}"),
)
NUMBERS = ["x", "y", "number", "price", "total", "value"]
LISTS = ["data", "items", "lines", "names", "words", "values"]


def code(rng: random.Random) -> Example:
    """A one-line Python function to complete; the slip is a beginner's bug."""
    name, text, answer, slip = function = rng.choice(NUMERIC + SEQUENCES)
    n, x = rng.randrange(2, 100), rng.choice(NUMBERS if function in NUMERIC else LISTS)
    prompt = f'def {name}({{x}}):\n    """{text}"""\n    return'
    prompt, answer, slip = (part.format(n=n, x=x) for part in (prompt, answer, slip))
    return Example(prompt, f" {answer}", f" {slip}", name.format(n=n))


LANGUAGES = (  # spelling, "Write {} in letters:", "Write {} in digits:"
    (indonesian, "Tulis {} dengan huruf:", "Tulis {} dengan angka:"),
    (thai, "เขียน {} เป็นตัวหนังสือ:", "เขียน {} เป็นตัวเลข:"),
    (vietnamese, "Viết {} bằng chữ:", "Viết {} bằng số:"),
)


def sea(rng: random.Random) -> Example:
    """A number to write out or read in a South-East Asian language; the slip is to use English."""
    number = rng.randrange(10, rng.choice((100, 1000)))
    spell, to_words, to_digits = rng.choice(LANGUAGES)
    if rng.random() < 0.4:
        prompt, answer, slip = to_digits.format(spell(number)), str(number), str(number)
    else:
        prompt, answer, slip = to_words.format(number), spell(number), english(number)
    return Example(prompt, f" {answer}", f" {slip}", str(number))


SKILLS: dict[str, Callable[[random.Random], Example]] = {"math": math, "code": code, "sea": sea}


def is_held_out(fact: str) -> bool:
    """Whether a fact is kept for the test sets, as one in ten is."""
    return zlib.crc32(fact.encode()) % 10 == 0


def training(skill: str, seed: int) -> Iterator[Example]:
    """Endless examples of a skill with facts that no test set has."""
    rng = random.Random(f"{skill} {seed}")
    while True:
        if not is_held_out((example := SKILLS[skill](rng)).fact):
            yield example


def tuning(skill: str, size: int = 40) -> list[Example]:
    """Different examples to tune a merge on, with facts neither trained on nor in `held_out`."""
    tested = {example.fact for example in held_out(skill)}
    rng, examples = random.Random(f"tuning {skill}"), dict[str, Example]()
    while len(examples) < size:
        example = SKILLS[skill](rng)
        if is_held_out(example.fact) and example.fact not in tested:
            examples[example.prompt] = example
    return list(examples.values())


def held_out(skill: str, size: int = 100) -> list[Example]:
    """Different examples of a skill, the same at each call, with facts never trained on."""
    rng, examples = random.Random(skill), dict[str, Example]()
    while len(examples) < size:
        example = SKILLS[skill](rng)
        if is_held_out(example.fact):
            examples[example.prompt] = example
    return list(examples.values())
