r"""The Python code of the answer against the tests of the reference, each answer in a process of its own.

The code is the answer's last fenced block, else the whole answer. The reference holds the tests, in one of three forms:

    assert add(1, 2) == 3                                   Python, run after the code; passes if nothing is raised
    ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]      a JSON list of such texts, each run for itself
    {"inputs": ["1 2\n"], "outputs": ["3\n"]}               a JSON mapping; the code is a program that reads and prints

An answer that fails, hangs or eats memory earns 0: that is what the reward is for. It is bad only where the tests cannot be run. What keeps
the machine safe from the code is told in `jail.py`; what does not is told in the docs, and should be read before training on code.
"""

from __future__ import annotations

import json
import marshal
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.objectives.rewards.base import NO_REFERENCE, Answer, Bad
from luthier.objectives.rewards.fenced import last_block
from luthier.recipe.sections.rewards import Code

JAIL = Path(__file__).with_name("jail.py")
_GRACE = 30.0
"""Seconds beside the time for the tests, in which an interpreter starts; the jail itself keeps to the time for the tests."""
_CALM = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The environment of an answer: nothing of ours."""


class CodeReward:
    """Runs the tests.

    Raises:
        UserError: this system cannot keep the isolation that is asked for.
    """

    def __init__(self, settings: Code) -> None:
        self.settings = settings
        said = self._run("pass", ["pass"])
        if isinstance(said, Bad):
            hint = "Set `isolation: limits` to run answers with limits of time and memory alone."
            raise UserError(f"code cannot be isolated here: {said.why}", where="stage.rewards", hint=hint)

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """1 or 0, or the share of tests that pass; bad where there are no tests or they cannot be run."""
        with ThreadPoolExecutor(self.settings.workers or os.cpu_count() or 1, "reward-code") as pool:
            return list(pool.map(self._one, answers))

    def _one(self, answer: Answer) -> float | Bad:
        if answer.reference is None:
            return NO_REFERENCE
        tests = read_tests(answer.reference)
        if isinstance(tests, Bad):
            return tests
        block = last_block(answer.text)
        passed = self._run(answer.text if block is None else block, tests)
        if isinstance(passed, Bad):
            return passed
        return sum(passed) / len(passed) if self.settings.score == "share" else float(all(passed))

    def _run(self, code: str, tests: Sequence[str | Mapping[str, str]]) -> list[bool] | Bad:
        settings = self.settings
        task = {
            "code": code,
            "tests": list(tests),
            "seconds": settings.timeout,
            "memory": settings.memory_mb << 20,
            "isolate": settings.isolation == "full",
        }
        folder = tempfile.mkdtemp(prefix="luthier-code-")
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", *([] if settings.packages else ["-S"]), str(JAIL)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**_CALM, "HOME": folder, "TMPDIR": folder},
                start_new_session=True,
            )
            passed = _read(_talk(process, marshal.dumps(task), settings.timeout + _GRACE), len(tests))
            # Who is not shut in can end the jail, and should not escape his reward by that.
            return [False] * len(tests) if isinstance(passed, Bad) and not task["isolate"] else passed
        finally:
            _remove(folder)


def read_tests(reference: str) -> list[str | Mapping[str, str]] | Bad:
    """The tests that a reference holds: texts of Python, or mappings with `input` and `output`."""
    try:
        value: Any = json.loads(reference)
    except (ValueError, RecursionError):
        return [reference] if reference.strip() else Bad("the reference holds no tests")
    if isinstance(value, list) and value and all(isinstance(test, str) for test in value):
        return list(value)
    if isinstance(value, dict):
        given, wanted = value.get("inputs"), value.get("outputs")
        if isinstance(given, list) and isinstance(wanted, list) and given and len(given) == len(wanted):
            return [{"input": _lines(one), "output": _lines(other)} for one, other in zip(given, wanted, strict=True)]
    return Bad("the reference is JSON, but neither a list of tests nor `inputs` and `outputs` of the same length")


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _talk(process: subprocess.Popen[bytes], task: bytes, seconds: float) -> bytes:
    """What the jail replies; it and all that it started are killed at the end."""
    try:
        return process.communicate(task, timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return b""
    finally:
        with suppress(ProcessLookupError):  # it is gone already, as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _remove(folder: str) -> None:
    """Remove what an answer left; by `rm`, which also takes trees that are deeper than Python's stack."""
    for command in (["rm", "-rf", "--", folder], ["chmod", "-R", "u+rwx", "--", folder], ["rm", "-rf", "--", folder]):
        if os.path.lexists(folder):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def _read(said: bytes, count: int) -> list[bool] | Bad:
    """Which tests passed."""
    reply = said.decode("utf-8", "replace").strip()
    if len(reply) == count and {*reply} <= {"0", "1"}:
        return [mark == "1" for mark in reply]
    return Bad(reply or "the process of the tests ended before it replied")


def build(settings: Code) -> CodeReward:
    """The reward of these settings."""
    return CodeReward(settings)
