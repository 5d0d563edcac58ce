"""The command that adds an extra to this installation, whichever way it was installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

OURS = "merge-plugins"


def to_install(extra: str, name: str = OURS) -> str:
    """Return the command that installs an extra of a distribution into this environment.

    It names what is installed already: a release by its name, a checkout, wheel or repository by
    its place.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:  # the code is found by its path alone
        return f'pip install "{name}[{extra}]"'
    return f"{_tool(found)} {_requirement(found, extra)}"


def _requirement(found: Distribution, extra: str) -> str:
    """Write a distribution with an extra, from where it was installed [PEP 610]."""
    origin: dict[str, Any] = json.loads(found.read_text("direct_url.json") or "{}")
    named = f"{found.name}[{extra}]"
    if not origin:
        return f'"{named}"'
    url = origin["url"]
    if "dir_info" in origin:
        folder = url2pathname(urlsplit(url).path)
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'{editable}"{folder}[{extra}]"'
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f'"{named} @ {url}"'


def _tool(found: Distribution) -> str:
    """Write `pip install`, or uv's, so that it means this environment, activated or not."""
    if (found.read_text("INSTALLER") or "").strip() == "uv":
        active = os.environ.get("VIRTUAL_ENV") == sys.prefix
        return "uv pip install" + ("" if active else f' --python "{sys.executable}"')
    pip = shutil.which("pip")
    here = pip is not None and Path(pip).parent == Path(sys.executable).parent
    return "pip install" if here else f'"{sys.executable}" -m pip install'
