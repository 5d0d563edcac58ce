"""A command that a signal stops ends as stopped, whatever fails on its way out."""

from __future__ import annotations

import signal

import pytest

from merge_plugins.cli import main
from merge_plugins.cli.command import Command
from merge_plugins.errors import MergeError
from merge_plugins.signals import signals_first


@signals_first()
def fail_after(first: BaseException, second: Exception) -> None:
    try:
        try:
            raise first
        finally:
            raise RuntimeError("cannot release un-acquired lock")
    except RuntimeError as exc:
        raise second from exc


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(128 + signal.SIGTERM)])
def test_an_error_of_cleaning_up_does_not_hide_what_stopped_a_command(stop: BaseException) -> None:
    with pytest.raises(type(stop)) as seen:
        fail_after(stop, OSError("a second one"))
    assert seen.value is stop


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (KeyError("k"), ValueError("wrong")),
        (SystemExit(2), ValueError("wrong")),
        (KeyboardInterrupt(), MergeError("the disk is full")),
    ],
)
def test_other_errors_are_what_they_were(first: BaseException, second: Exception) -> None:
    with pytest.raises(type(second)) as seen:
        fail_after(first, second)
    assert seen.value is second


def test_a_command_that_is_interrupted_says_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("cannot release un-acquired lock")

    monkeypatch.setattr(Command, "prepare", lambda *_: run)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "merge-plugins: interrupted\n"
