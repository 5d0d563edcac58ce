"""How Sailor scores answers in South-East-Asian languages; knows no harness.

Questions are scored by exact match and by F1 over words, Thai words as pythainlp cuts them;
multiple-choice questions by the first option that an answer names. Every score is that of one item,
in [0, 1]. The rules are those of the published evaluation, with one difference: where
that tried its answer labels in the order of a Python set, which changes from run to run, the order
here is fixed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from merge_plugins.errors import DataError
from merge_plugins.installing import to_install

ANSWER_LABELS = ("คำตอบ: ", "trả lời: ", "jawaban: ", "ไทย: ", "bahasa indonesia: ", "tiếng việt: ")
"""What a model may say before its answer; the first of these that occurs is cut off."""
TO_ARABIC = str.maketrans("๑๒๓๔๕", "12345")
NAMED = (
    r"答案是?\s?[o]",
    r"答案是?\s?：[o]",
    r"答案是?\s?:[o]",
    r"答案应该?是\s?[o]",
    r"答案应该?选\s?[o]",
    r"答案为\s?[o]",
    r"答案选\s?[o]",
    r"选择?\s?[o]",
    *(rf"只有选?项?\s?[o]\s?{claim}" for claim in ("是?对", "是?错", "不?正确", "错误")),
    *(rf"说法{claim}选?项?的?是\s?[o]" for claim in ("不?对", "不?正确", "错误")),
    r"[o]\s?是正确的",
    r"[o]\s?是正确答案",
    r"选项\s?[o]\s?正确",
    r"所以答\s?[o]",
    r"1.\s?[o]",
    r"[\s，：:,][o]",
    r"[\s，,：:][故即][o]",
    r"[\s，,：:]因此[o]",
    r"[是为。]\s?[o]",
    r"因此\s?[o]",
    r"显然\s?[o]",
    r"1.\s?",
    r"所以\s?[o][.。$]?$",
    r"所有\s?[o][.。$]?$",
    r"答案是\s?\S+(?:。|$)",
    r"答案应该是\s?\S+(?:。|$)",
    r"答案为\s?\S+(?:。|$)",
    r"^选项\s?[o]",
    r"^[o]\s?选?项",
    r"^[o][\s。，,：:.$]",
    r"^[o]$",
    r"1.\s?.*?$",
    r"[o]:",
    r"[o]",
)
"""How an answer names an option, ``[o]``, surest first: the patterns of OpenCompass that Sailor
kept, less those that can match only where an earlier one does. They were made for Chinese; what
South-East-Asian answers meet are the last few, ``1.`` and a blank or colon before an option."""


def answer_scores(prediction: str, answer: str) -> dict[str, float]:
    """XQuAD: exact match and F1."""
    return {"em": exact_match(prediction, answer), "f1": f1(prediction, answer)}


def any_answer_scores(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """TyDiQA: the best exact match and F1 over several answers, words as spaces cut them."""
    prediction = tidy_prediction(prediction.lower())
    answers = [tidy_answer(answer.lower()) for answer in answers]
    overlaps = [_overlap(prediction.split(), answer.split()) for answer in answers]
    return {"em": float(prediction in answers), "f1": max(overlaps)}


def letter_scores(prediction: str, answer: str) -> dict[str, float]:
    """M3Exam: whether the first option that the first line names is the answer, A to D."""
    line = prediction.split("\n", 1)[0].split("Câu hỏi: ")[-1]
    return choice_scores(first_option(line, "ABCD"), answer)


def digit_scores(prediction: str, answer: str) -> dict[str, float]:
    """M3Exam in Thai: the same with digits 1 to 5, Arabic or Thai."""
    option = first_option(prediction.split("\n", 1)[0], "12345๑๒๓๔๕")
    return choice_scores(option.translate(TO_ARABIC), answer.translate(TO_ARABIC))


def choice_scores(option: str, answer: str) -> dict[str, float]:
    """Whether an option is the answer."""
    return {"em": float(option == answer)}


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 where the prediction is the answer, as written or after both are tidied."""
    prediction, answer = prediction.lower(), answer.lower()
    ours = {prediction, tidy_prediction(prediction)}
    return float(not ours.isdisjoint({answer, tidy_answer(answer)}))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over words, each counted as often as it is.

    Both are cut by pythainlp where langid takes the whole raw prediction for Thai, else at spaces.
    Raises `DataError` where one of the two is needed and not installed.
    """
    cut = thai_words if is_thai(prediction) else str.split
    return _overlap(cut(tidy_prediction(prediction.lower())), cut(tidy_answer(answer.lower())))


def first_option(text: str, options: str) -> str:
    """Return the option that a text names, or an empty string.

    The first pattern of `NAMED` whose match has an option in it decides; of several options in
    one match it is the first in the order of ``options``, not of the text.
    """
    for pattern in _patterns(options):
        found = pattern.search(text)
        option = next((o for o in options if o in found[0]), "") if found else ""
        if option:
            return option
    return ""


def tidy_prediction(text: str) -> str:
    """Return the first line of a lower-case prediction without label or closing punctuation."""
    text = text.split("\n", 1)[0].lstrip()
    label = next((label for label in ANSWER_LABELS if label in text), None)
    return tidy_answer(text if label is None else text.split(label)[-1])


def tidy_answer(text: str) -> str:
    """Return a lower-case text without closing punctuation or needless blanks.

    What closes a text is all that is no letter, digit or underscore after the last one that is, so
    the vowel and tone marks that end a Thai text go as well, in prediction and answer alike.
    """
    text = re.sub(r"(\w)[^\w\s]*\s*$", r"\1", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"\s*([,.])", r"\1", text).strip()


def is_thai(text: str) -> bool:
    """Say whether langid takes a text for Thai."""
    try:
        import langid
    except ModuleNotFoundError as exc:
        raise DataError(f"F1 asks langid for each answer's language: {to_install('sea')}") from exc
    return bool(langid.classify(text)[0] == "th")


def thai_words(text: str) -> list[str]:
    """Return the words of a Thai text, without blanks."""
    try:
        from pythainlp.tokenize import word_tokenize
    except ModuleNotFoundError as exc:
        raise DataError(f"F1 of a Thai answer needs pythainlp: {to_install('sea')}") from exc
    return list(word_tokenize(text, join_broken_num=True, keep_whitespace=False))


@functools.cache
def _patterns(options: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern.replace("[o]", f"[{options}]")) for pattern in NAMED)


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    common = (Counter(ours) & Counter(theirs)).total()
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
