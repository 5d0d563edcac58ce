"""What to type for an extra: the same source, and this environment whichever is active."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from merge_plugins.installing import to_install

CHECKOUT = {"url": "file:///home/me/my%20merges", "dir_info": {"editable": True}}
FOLDER = {"url": "file:///home/me/merges", "dir_info": {}}
WHEEL = {"url": "https://host/guest-1.0-py3-none-any.whl", "archive_info": {}}
COMMIT = {"url": "https://host/guest", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    info = tmp_path / "guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), "/bin"]))
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    return info


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (None, '"guest[more]"'),
        (CHECKOUT, '-e "/home/me/my merges[more]"'),
        (FOLDER, '"/home/me/merges[more]"'),
        (WHEEL, '"guest[more] @ https://host/guest-1.0-py3-none-any.whl"'),
        (COMMIT, '"guest[more] @ git+https://host/guest@abc123"'),
    ],
)
def test_an_extra_comes_from_where_the_rest_came_from(origin, words, installed: Path) -> None:
    if origin:
        (installed / "direct_url.json").write_text(json.dumps(origin))
    assert to_install("more", "guest").endswith(f"pip install {words}")


@pytest.mark.parametrize(
    ("tool", "active", "words"),
    [
        ("uv", True, "uv pip install "),
        ("uv", False, f'uv pip install --python "{sys.executable}" '),
        ("pip", False, f'"{sys.executable}" -m pip install '),
    ],
)
def test_it_goes_to_this_environment(
    tool, active, words, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed / "INSTALLER").write_text(f"{tool}\n")
    if not active:
        monkeypatch.delenv("VIRTUAL_ENV")
        monkeypatch.setenv("PATH", "/bin")
    assert to_install("more", "guest") == f'{words}"guest[more]"'


def test_code_that_nobody_installed_is_named() -> None:
    assert to_install("more", "no-such-guest") == 'pip install "no-such-guest[more]"'
