"""SGLang's own source, which imports torchvision though its loader needs none of it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from needed import need

PARTS = ("", ".io", ".ops", ".transforms", ".transforms.functional", ".transforms.v2")
PARTS += (".transforms.v2.functional",)


class Anything(type):
    """A class of which every attribute is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Empty(ModuleType):
    """A module of which every attribute is a class without contents."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


@pytest.fixture(scope="session")
def sglang() -> None:
    need("sglang.version", "REQUIRE_SGLANG")
    if importlib.util.find_spec("torchvision") is None:
        import transformers.models.auto.processing_auto  # while it sees that there is none  # noqa: F401

        for part in PARTS:
            module = Empty(f"torchvision{part}")
            module.__path__ = []
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            sys.modules[module.__name__] = module
    need("sglang.srt.model_loader.loader", "REQUIRE_SGLANG")
