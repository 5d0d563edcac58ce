"""Models of one weight, written once for all searches through them."""

from __future__ import annotations

from pathlib import Path

import nearness
import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearness.write_models(tmp_path_factory.mktemp("models"))
