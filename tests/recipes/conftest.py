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


@pytest.fixture(scope="session")
def made(script):
    """All dialogues of the embedded model, with the sums that are not taught."""
    return script("dialogues").training(seed=1)


@pytest.fixture(scope="session")
def taught(script, made):
    """Those that it is trained on."""
    return [dialogue for dialogue in made if script("dialogues").is_taught(dialogue)]


@pytest.fixture(scope="session")
def examined(script, made):
    """The dialogues that were held out from them."""
    return script("dialogues").held_out(1, made)
