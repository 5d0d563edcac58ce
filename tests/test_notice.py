"""Lines that everyone sees: on standard error, from the first process of a group, or nowhere."""

from __future__ import annotations

import logging
import os

import pytest

from merge_plugins import notice


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (notice.QUIET, *notice.RANKS):
        monkeypatch.delenv(name, raising=False)


def test_a_line_is_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    notice.tell("all of it")
    assert capsys.readouterr() == ("", "merge-plugins: all of it\n")


@pytest.mark.parametrize(
    ("name", "value", "is_shown"),
    [
        (notice.QUIET, "1", False),
        (notice.QUIET, "0", True),
        (notice.QUIET, "", True),
        ("RANK", "0", True),
        ("RANK", "3", False),
        ("LOCAL_RANK", "1", False),
        ("VLLM_DP_RANK", "2", False),
    ],
)
def test_the_environment_decides(
    name: str,
    value: str,
    is_shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    notice.tell("all of it")
    assert notice.is_shown() == is_shown
    assert bool(capsys.readouterr().err) == is_shown


def test_a_command_that_was_quiet_or_verbose_leaves_nothing_behind() -> None:
    before, logger = dict(os.environ), logging.getLogger("merge_plugins")
    level = logger.level
    with notice.restored():
        notice.be(quiet=True)
        assert notice.is_quiet()
        assert os.environ["TQDM_DISABLE"] == "1"
        logger.setLevel(logging.DEBUG)
    assert (dict(os.environ), logger.level) == (before, level)
