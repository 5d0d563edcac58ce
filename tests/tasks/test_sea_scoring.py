"""Sailor's scores, with the quirks that its published numbers have."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from harness_adapters.tasks.scoring import sea
from merge_plugins.errors import DataError
from merge_plugins.installing import to_install


@pytest.mark.parametrize(
    ("prediction", "tidied"),
    [
        (" paris. \nbối cảnh: x", "paris"),
        ("trả lời: paris", "paris"),
        ("tôi nghĩ trả lời: a, trả lời: b!", "b"),
        ("jawaban: bahasa indonesia: ya", "bahasa indonesia: ya"),  # one label, the first known
        ("ไทย: คำตอบ: นา", "นา"),
        ("คำตอบ: ไทย: นา", "ไทย: นา"),
        ("jawaban:paris", "jawaban:paris"),  # a label has its blank
        ("3.000  m  , kira-kira .", "3.000 m, kira-kira."),  # a blank shields the full stop
        ("(1685)", "(1685"),
        ("แพะภูเขา ๆ.", "แพะภูเขา ๆ"),
        ("ก็ได้ค่ะ!", "ก็ได้ค่ะ"),  # but not before a last letter
        ("นี่!", "น"),  # Thai vowel and tone marks at the end go with the punctuation
        ("", ""),
        ("\n", ""),
    ],
)
def test_a_prediction_is_tidied(prediction, tidied):
    assert sea.tidy_prediction(prediction) == tidied


def test_an_answer_keeps_its_labels_and_lines():
    assert sea.tidy_answer(" jawaban: a\nb. ") == "jawaban: a b"


@pytest.mark.parametrize(
    ("prediction", "answer", "matches"),
    [
        (" Ruộng.\n\nBối cảnh: ...", "ruộng", 1.0),
        ("Trả lời: RUỘNG", "ruộng.", 1.0),
        ("ruộng\nnước", "ruộng\nnước", 1.0),  # as written
        ("ruộng nước", "ruộng", 0.0),
        ("", "ruộng", 0.0),
    ],
)
def test_exact_match_compares_texts_as_written_or_tidied(prediction, answer, matches):
    assert sea.exact_match(prediction, answer) == matches


def test_f1_counts_each_word_as_often_as_both_have_it():
    f1 = sea.answer_scores("the goats and the sheep of the valley", "the goats the sheep")["f1"]
    assert f1 == pytest.approx(2 * (4 / 8) * (4 / 4) / (4 / 8 + 4 / 4))
    assert sea.f1("nothing in common", "ruộng") == 0.0
    assert sea.f1("", "ruộng") == 0.0


def test_thai_words_are_cut_by_pythainlp_where_langid_hears_thai():
    assert sea.thai_words("แพะภูเขาอัลไพน์ 3,000") == ["แพะ", "ภูเขา", "อัลไพน์", "3,000"]
    assert sea.is_thai("แพะภูเขาอัลไพน์")
    assert not sea.is_thai("dê núi Alpine")
    words, answer = "แพะ ภูเขาสูง", "แพะภูเขา"
    assert sea.f1(words, answer) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))


def test_the_language_of_all_that_was_written_decides():
    """The first line alone is compared, but it is cut as the rest of the text says."""
    english = "\n" + "and then the people of the valley went home to their houses " * 5
    assert sea.f1("แพะภูเขา", "ภูเขา") > 0
    assert sea.f1("แพะภูเขา" + english, "ภูเขา") == 0.0


def test_tydiqa_takes_the_best_of_several_answers_and_asks_for_no_language():
    answers = ["James McLamore", "David Edgerton dan James McLamore"]
    scores = sea.any_answer_scores(" James McLamore dan David Edgerton.\nKonteks:", answers)
    assert scores["em"] == 0.0
    assert scores["f1"] == pytest.approx(1.0)
    assert sea.any_answer_scores("jawaban: james mclamore", answers)["em"] == 1.0
    assert sea.any_answer_scores("", answers) == {"em": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("text", "option"),
    [
        (" B", "B"),
        ("B. xanh", "B"),
        ("xanh (C)", "C"),
        ("b. xanh", ""),
        ("Chọn phương án D", "D"),
        ("A: Trời, B", "B"),  # after a blank beats before a colon
        ("CAB: x", "B"),  # a colon beats the order of the options
        ("DACB", "D"),
        ("1xyDB", "B"),  # of several in one match, the first in the order of the options
        ("15 C", "C"),
        ("1. xanh B", "B"),
        ("1)C", "C"),
        ("12B", "B"),
        ("答案是(C)", "C"),
        ("D是正确答案, B", "D"),
        ("所以B", "B"),
        ("", ""),
    ],
)
def test_the_first_option_that_a_text_names(text, option):
    assert sea.first_option(text, "ABCD") == option


@pytest.mark.parametrize(
    ("prediction", "answer", "matches"),
    [
        (" ๓", "3", 1.0),
        ("3", "๓", 1.0),
        ("ข้อ ๒. แดง", "2", 1.0),
        ("1. 3", "3", 0.0),  # "1." is what stands before an option, and is one
        ("1. 3", "1", 1.0),
        ("๔ หรือ 1", "4", 0.0),  # a blank and a digit beat a digit alone
        ("แดง", "1", 0.0),
        ("\n3", "3", 0.0),
    ],
)
def test_thai_exams_take_both_kinds_of_digits(prediction, answer, matches):
    assert sea.digit_scores(prediction, answer) == {"em": matches}


def test_exams_read_the_first_line_after_the_last_question():
    assert sea.letter_scores("A Câu hỏi: B", "B") == {"em": 1.0}
    assert sea.letter_scores(" A\nB", "B") == {"em": 0.0}
    assert sea.letter_scores("", "A") == {"em": 0.0}


def test_scores_do_not_depend_on_the_hash_seed():
    """The published evaluation tried its labels in the order of a set."""
    text, tidied = "jawaban: ไทย: trả lời: คำตอบ: tiếng việt: x", "tiếng việt: x"
    code = (
        "from harness_adapters.tasks.scoring import sea\n"
        f"assert sea.tidy_prediction({text!r}) == {tidied!r}"
    )
    assert sea.tidy_prediction(text) == tidied
    subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, check=True)


@pytest.mark.parametrize("module", ["langid", "pythainlp.tokenize"])
def test_what_cuts_thai_words_is_asked_for_by_name(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"(needs|asks).*{re.escape(to_install('sea'))}"):
        sea.f1("แพะภูเขาอัลไพน์", "แพะ")


def test_only_f1_of_xquad_needs_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "langid", None)
    monkeypatch.setitem(sys.modules, "pythainlp", None)
    assert sea.any_answer_scores("ya", ["ya"]) == {"em": 1.0, "f1": 1.0}
    assert sea.digit_scores("๑", "1") == sea.letter_scores("A", "A") == {"em": 1.0}
