"""How long a merge takes, as its first weights show."""

from __future__ import annotations

import time

import pytest
import torch

from merge_plugins.engine.meter import Meter, spelled, total, work
from merge_plugins.methods.task_vectors import TaskArithmetic
from merge_plugins.methods.tsv_iso import IsoC
from merge_plugins.planning import PlannedTensor


def planned(kernel: object, *shape: int) -> PlannedTensor:
    stored = tuple(torch.empty(shape) for _ in range(3))
    return PlannedTensor("w", shape, torch.float32, None, stored, kernel, (), {})  # type: ignore[arg-type]


def test_work_is_of_elements_or_of_matrices_and_none_where_a_weight_is_copied() -> None:
    assert work(planned(TaskArithmetic(), 8, 4), 16) == {"elements": 48}
    assert work(planned(IsoC(), 8, 4), 32) == {"matrices": 128}
    assert work(planned(IsoC(), 8), 8) == {"elements": 24}
    assert work(planned(None, 8, 4), 32) == {}
    assert total([{"a": 1}, {"a": 2, "b": 3}, {}]) == {"a": 3, "b": 3}


@pytest.mark.parametrize(("threads", "seconds"), [(1, 30), (2, 15)])
def test_the_rest_takes_as_long_as_the_first_weights_did(threads: int, seconds: int) -> None:
    meter = Meter({"elements": 100}, "ties is merged")
    now = time.monotonic()
    assert meter.expected(now) is None
    for _ in range(threads):
        meter.note({"elements": 10}, now - 3)
    assert meter.expected(now) == pytest.approx(seconds, rel=0.05)


def test_how_long_it_takes_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter({"elements": 100}, "ties is merged")
    for _ in range(2):
        meter.note({"elements": 10}, time.monotonic() - 3)
    line = "merge-plugins: ties is merged in about 30 s, as the first weights went.\n"
    assert capsys.readouterr() == ("", line)


def test_nothing_is_said_before_every_kind_of_work_was_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    meter = Meter({"elements": 100, "matrices": 1000}, "tsv is merged")
    began = time.monotonic() - 4
    meter.note({"elements": 50}, began)
    assert capsys.readouterr().err == ""
    meter.note({"matrices": 100}, began + 2)
    # 4 s so far; 4 for the other elements, 18 for the other matrices, one and a half at a time
    assert "tsv is merged in about 19 s" in capsys.readouterr().err
    meter.note({"matrices": 100}, began)
    assert capsys.readouterr().err == "", "once"


@pytest.mark.parametrize(
    ("done", "ago"),
    [({"elements": 50}, 1), ({"elements": 50}, 3)],
    ids=["too early", "too short to be worth a line"],
)
def test_short_merges_say_nothing(
    done: dict[str, float], ago: float, capsys: pytest.CaptureFixture[str]
) -> None:
    Meter({"elements": 100}, "linear is merged").note(done, time.monotonic() - ago)
    assert capsys.readouterr().err == ""


def test_times_are_spelled_as_coarsely_as_they_are_known() -> None:
    assert [*map(spelled, (12.3, 119, 720))] == [
        "in about 12 s",
        "in about 119 s",
        "in about 12 min",
    ]
