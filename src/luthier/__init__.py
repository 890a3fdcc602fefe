"""Luthier: a workshop for fine-tuning language models.

`luthier.train(recipe)` makes a run, `luthier.resume(run)` carries it on, `luthier.load(run).chat(...)` talks to what came out.
The names below are imported when they are first used, so that `import luthier` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.errors import Stopped as Stopped
    from luthier.errors import UserError as UserError
    from luthier.recipe.schema import Recipe as Recipe
    from luthier.workshop import Run as Run
    from luthier.workshop import load as load
    from luthier.workshop import resume as resume
    from luthier.workshop import train as train

_HOME = {
    "Recipe": "luthier.recipe.schema",
    "Run": "luthier.workshop",
    "Stopped": "luthier.errors",
    "UserError": "luthier.errors",
    "load": "luthier.workshop",
    "resume": "luthier.workshop",
    "train": "luthier.workshop",
}
__all__ = ["Recipe", "Run", "Stopped", "UserError", "__version__", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "chat":
        return import_module("luthier.chat")
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")
