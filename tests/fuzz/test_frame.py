"""The frame of the fuzz tests: it fails where it should, and it can be repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from merge_plugins.errors import RecipeError

Attempt = Callable[[Callable[[], Any]], Any]


def refused() -> None:
    raise RecipeError("no recipe")


def test_a_merge_error_is_counted_and_any_other_fails(
    attempt: Attempt, outcomes: Counter[str]
) -> None:
    assert attempt(refused) is None
    assert attempt(lambda: 3) == 3
    with pytest.raises(KeyError):
        attempt(lambda: {}["a"])
    assert outcomes == {"RecipeError": 1, "accepted": 1}


Stream = Callable[[int], Iterator[Random]]


def test_the_suite_draws_the_same_examples_every_time(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUZZ_SECONDS", raising=False)
    monkeypatch.delenv("FUZZ_SEED", raising=False)
    first, second = ([random.random() for random in stream(3)] for _ in range(2))
    assert first == second
    assert len({*first}) == 3
    monkeypatch.setenv("FUZZ_SEED", "2")
    assert [random.random() for random in stream(3)] == first[2:]


def test_with_time_the_examples_are_new_until_it_is_over(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUZZ_SEED", raising=False)
    monkeypatch.setenv("FUZZ_SECONDS", "0.1")
    first, second = ([random.random() for random in stream(1)] for _ in range(2))
    assert first
    assert not {*first} & {*second}
