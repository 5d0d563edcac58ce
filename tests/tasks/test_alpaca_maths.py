"""GSM8K and MATH as DARE and WIDEN read answers, quirks included, and as a reader would."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from harness_adapters.tasks.scoring import maths
from harness_adapters.tasks.scoring.equivalence import equivalent, normal_form, same_value

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_the_prompt():
    assert maths.prompt("How {many}?") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nHow {many}?\n\n"
        "### Response: Let's think step by step."
    )


@pytest.mark.parametrize(
    ("said", "published", "correct"),
    [
        ("The answer is: 18.", 18, 18),
        ("The answer is: $1,234", 1234, 1234),
        ("The answer is: 1,234,567", 1234, 1234567),
        ("The answer is: 100,000.50", 100000, Fraction("100000.5")),
        ("The answer is: 2.5", 2, Fraction(5, 2)),
        ("The answer is: 3.5", 4, Fraction(7, 2)),
        ("The answer is: 1/2", 0, Fraction(1, 2)),
        ("The answer is: .75", 1, Fraction(3, 4)),
        ("The answer is: 3/0", 3, None),
        ("The answer is: /2", None, 2),
        ("The answer is: -7 degrees", -7, -7),
        ("The answer is: -$7", 7, -7),
        ("The answer is: \N{MINUS SIGN}7", 7, -7),
        ("The answer is: $\\frac{3}{4}$", 3, Fraction(3, 4)),
        ("The answer is: $\\boxed{1{,}000}$", 1, 1000),
        ("The answer is: x = 5", 5, 5),
        ("The answer is: 1. No: The answer is: 2", 2, 2),
        ("The answer is: none", None, None),
        ("The answer is: " + "9" * 400, None, int("9" * 400)),
        ("The answer is 18", None, 18),
        ("the final answer is **18**", None, 18),
        ("5 + 13 = 18\n#### 18", None, 18),
        ("18", None, None),
    ],
)
def test_what_number_is_read(said, published, correct):
    assert maths.mergelm_number(said) == published
    assert maths.number(said) == correct


@pytest.mark.parametrize(
    ("said", "scores"),
    [
        ("The answer is: 1,234,567.", (1, 0, 0)),
        ("The answer is: 1234567.4", (0, 1, 0)),
        ("#### 1234567", (1, 0, 1)),
        ("I do not know.", (0, 0, 1)),
    ],
)
def test_gsm8k_scores_both_readings(said, scores):
    found = maths.gsm8k_scores(said, "Multiply.\n#### 1,234,567")
    assert tuple(found.values()) == scores
    assert list(found) == ["exact_match", "exact_match_mergelm", "no_answer"]


def test_both_readings_find_every_gold_answer_of_gsm8k():
    file = SHARED / "gsm8k_test.jsonl"
    if not file.is_file():
        pytest.skip("GSM8K is not in this checkout")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1319
    for row in rows:
        said = f"The answer is: {maths.gold_number(row['answer'])}."
        assert set(maths.gsm8k_scores(said, row["answer"]).values()) == {1.0, 0.0}
        assert maths.gsm8k_scores(row["answer"], row["answer"])["exact_match"] == 1


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.5", "\\frac{1}{2}"),
        ("1/2", "\\frac12"),
        ("-1/2", "\\frac{-1}{2}"),
        ("\\frac1{72}", "\\dfrac{1}{72}"),
        (".5x", "0.5x"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("x = 5", "5"),
        ("5", "5\\text{ cm}"),
        ("90", "90^\\circ"),
        ("50\\%", "50"),
        ("\\left( 1,2 \\right)", "(1,2)"),
        ("\\$3", "3"),
        ("x/2", "x/2"),
        ("", ""),
    ],
)
def test_answers_that_the_rules_of_math_call_equal(answer, gold):
    assert equivalent(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("$5$", "5"),
        ("\\boxed{5}", "5"),
        ("5.0", "5"),
        ("abc = 5", "5"),
        ("x / 2", "x/2"),  # no normal form, so compared as written
        ("2/4", "1/2"),
        ("x+1", "1+x"),
        ("5\\text{ m}\\text{ s}", "5"),
        ("\\sqrt", "\\sqrt "),
    ],
)
def test_answers_that_the_rules_of_math_tell_apart(answer, gold):
    assert not equivalent(answer, gold)


@pytest.mark.parametrize("text", ["x/2", "1\\sqrt", "\\frac", "1\\text{ m}\\text{ s}"])
def test_what_the_rules_cannot_read_has_no_normal_form(text):
    with pytest.raises(ValueError, match=r"invalid literal|of nothing|two units"):
        normal_form(text)


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("1,000", "1000", True),
        ("1{,}000.0", "1000", True),
        ("2/4", "0.5", True),
        ("-\\frac{3}{4}", "-0.75", True),
        ("3/0", "3/0", True),
        ("1,00", "100", False),
        ("x", "y", False),
    ],
)
def test_numbers_of_the_same_value_are_the_same_answer(answer, gold, same):
    assert same_value(answer, gold) is same


@pytest.mark.parametrize(
    ("said", "solution", "scores"),
    [
        ("So 3.\nThe answer is: 3.\nCheck.", "It is $\\boxed{3}$.", (1, 1, 0)),
        ("The answer is: $5$.", "It is $\\boxed{5}$.", (1, 0, 0)),
        ("The answer is: $\\boxed{\\frac{1}{2}}$", "\\boxed{0.5}", (1, 0, 0)),
        ("The answer is: 2. Then we stop", "\\boxed{2}", (1, 0, 0)),
        ("Hence \\boxed{7}.", "\\boxed{7}", (1, 0, 1)),
        ("The answer is: 7", "\\boxed 7$", (1, 0, 0)),
        ("The answer is: 7", "first \\boxed{6}, then \\boxed{7}", (1, 1, 0)),
        ("The answer is: 7", "\\fbox{7}", (1, 0, 0)),
        ("Seven.", "\\boxed{7}", (0, 0, 1)),
    ],
)
def test_math_scores_both_readings(said, solution, scores):
    assert tuple(maths.math_scores(said, solution).values()) == scores


def test_a_solution_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match=r"no \\boxed"):
        maths.math_scores("The answer is: 7", "It is 7.")
