"""The two ways a command ends early: the user's mistake, and a stop that was asked for.

Everything that a person can mend by editing a file or a flag is a `UserError`: the command line prints it as one
line and exits with 2. Everything else is a bug, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_DONE, EXIT_BUG, EXIT_USER, EXIT_STOPPED = 0, 1, 2, 3


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        what: what is wrong, in one clause without a full stop.
        where: the place, as `file:line`, `file`, a recipe key or a flag.
        hint: what to do about it, as a short imperative sentence.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.hint}" if self.hint else text


class Stopped(Exception):
    """A run was interrupted, its state is saved, and it can be resumed (exit code 3)."""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that looks most like `word`, of several one that goes on from it, or None when nothing is close."""
    found = get_close_matches(word, list(candidates), n=3, cutoff=0.6)
    return max(found, key=lambda name: name.startswith(word), default=None)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest candidate, else the list of all of them."""
    names = sorted(candidates)
    best = nearest(word, names)
    return f"Did you mean `{best}`?" if best else f"Known: {', '.join(names)}."
