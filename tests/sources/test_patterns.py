"""An adapter's expressions mean what they mean to PEFT, and end."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from merge_plugins.sources.patterns import PLAIN, matchers

ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", "[a-c.]", "[]a]", r"[\].]", r"\d", r"\w", "1"]
)
COUNTS = st.sampled_from(["", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map("|".join),
        st.builds("({}){}".format, inner, COUNTS),
        st.builds("(?:{}){}".format, inner, COUNTS),
        st.builds("(?P<x>{})".format, inner),
        st.builds("^{}".format, inner),
        st.builds("{}$".format, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=300, derandomize=True)
@given(EXPRESSIONS, st.lists(st.text("ab.1", max_size=7), min_size=5, max_size=5))
def test_names_match_as_in_peft(expression: str, names: list[str]) -> None:
    try:
        with warnings.catch_warnings(record=True):
            theirs = re.compile(rf"(.*\.)?({expression})$")
    except re.error:
        assume(False)
    (ours,) = matchers([expression])
    for name in names:
        assert ours(name) == (theirs.match(name) is not None)


@pytest.mark.parametrize("expression", ["(a+)+b", "(a|a)*b", "((((a*)*)*)*)*b", "(.*,)*" * 20])
def test_time_is_bounded(expression: str) -> None:
    assert not PLAIN.fullmatch(expression)
    before = time.process_time()
    (matches,) = matchers([expression])
    assert not matches("a" * 200 + "c")
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    "expression",
    [
        *(r"(a)\1", "(?=a)a", "(?<!a)b", "(?i:a)", r"\ba", "(a{99}){99}", "(){4000000000}"),
        *("a{9999999999999}", "(", "*", "(" * 5000 + ")" * 5000, "a)(b"),
    ],
)
def test_what_has_no_bounded_automaton_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"no way to match|no regular expression|states"):
        matchers([expression])
