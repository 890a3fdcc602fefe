"""The scripts of `recipes/tiny` are run as files, so their folder is put where Python finds their neighbours."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def script(root):
    """A function that imports one of the scripts by its name."""
    folder = str(root / "recipes/tiny")

    def load(name: str) -> ModuleType:
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return load
