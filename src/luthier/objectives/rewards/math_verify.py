"""1 where the answer equals the reference as mathematics, else 0: fractions, sets, intervals, equations, in LaTeX or plain.

Parsing and comparing are math-verify's, on sympy. Some expressions keep sympy busy for ever, and nothing stops a computation but the end of
its process; so the library works in a process beside, which the system ends when a comparison takes too long, and another takes its place.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from luthier.errors import UserError
from luthier.objectives.rewards.base import NO_REFERENCE, Answer, Bad
from luthier.recipe.sections.rewards import MathVerify

_WORKER = Path(__file__).with_name("math_worker.py")


class MathVerifyReward:
    """Asks the worker for each answer; one at a time, for a comparison takes milliseconds.

    Raises:
        UserError: math-verify is not installed.
    """

    def __init__(self, settings: MathVerify) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise UserError(
                "`math_verify` needs the package math-verify",
                where="stage.rewards",
                hint="Install it with `pip install 'luthier[rewards]'`.",
            )
        self.timeout = settings.timeout
        self._worker: _Worker | None = None

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """1 or 0; bad where there is no reference, where it cannot be parsed, or where it takes too long."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float | Bad:
        if answer.reference is None:
            return NO_REFERENCE
        if self._worker is None:
            self._worker = _Worker(self.timeout)
        said = self._worker.ask(json.dumps([answer.reference, answer.text]))
        if said is None:
            self._worker.end()
            self._worker = None
            return Bad(f"comparing took more than {self.timeout:g} s, or too much memory")
        result = json.loads(said)
        return Bad(result) if isinstance(result, str) else float(result)


class _Worker:
    """The process, and the pipe to it. It ends with whoever holds it."""

    def __init__(self, seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.end = weakref.finalize(self, _end, self.process)
        if self._reply() is None:
            self.end()
            raise UserError(
                "the process of math-verify does not start", where="stage.rewards", hint=f"Try `python -I {_WORKER} 10`."
            )

    def ask(self, question: str) -> str | None:
        """The worker's reply, or None if it has ended."""
        try:
            pipe = _open(self.process.stdin)
            pipe.write(question.encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            return None
        return self._reply()

    def _reply(self) -> str | None:
        line = _open(self.process.stdout).readline()
        return line.decode() if line.endswith(b"\n") else None


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def build(settings: MathVerify) -> MathVerifyReward:
    """The reward of these settings."""
    return MathVerifyReward(settings)
