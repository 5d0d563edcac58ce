"""A family of models on disk, which a case merges."""

from __future__ import annotations

import pytest

from merge_plugins.testing.family import Family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base and three fine-tunes on disk, of weights in bfloat16 and of models that can be run."""
    return Family(tmp_path_factory.mktemp("family"))
