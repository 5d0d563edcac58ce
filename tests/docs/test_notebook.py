"""docs/in_python.ipynb runs, and prints what is stored in it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "in_python.ipynb"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_every_cell_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            shown = "".join("".join(out.get("text", [])) for out in cell["outputs"])
            assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", shown), cell["id"]
            # Another processor may round an answer differently: one of twenty.
            numbers = [[float(n) for n in NUMBER.findall(t)] for t in (printed.getvalue(), shown)]
            assert numbers[0] == pytest.approx(numbers[1], abs=5), cell["id"]
    plt.close("all")


def test_no_path_of_a_machine_is_stored() -> None:
    assert not re.search(r"/(home|tmp|Users|work)/", NOTEBOOK.read_text(encoding="utf-8"))
