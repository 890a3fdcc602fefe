"""The process that compares mathematics: run by `math_verify.py` as a script of its own, so it knows nothing of Luthier.

    python -I math_worker.py SECONDS

One line of JSON in, `[reference, answer]`; one line out: 1, 0, or a text that says why the reference is of no use. A timer of the system
ends the process after so many seconds with one line, whatever it is doing, and also when nobody is left who would.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys

MEMORY = 4 << 30
START = 120.0
"""Seconds that importing sympy may take."""
_PLAIN = {wide: chr(wide - 0xFEE0) + (" " if chr(wide) in "，：；！？" else "") for wide in range(0xFF01, 0xFF5F)}
_CHINESE = re.compile("[\u3000-\u303f\u4e00-\u9fff]+")


def main() -> None:
    """Answer each line until the pipe is closed."""
    seconds = float(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print is no reply
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.setitimer(signal.ITIMER_REAL, START)
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def compare(reference: str, answer: str) -> float | str:
        gold = parse(_marked(_spaced(reference)), parsing_timeout=None)
        if not gold:
            return "math-verify cannot parse the reference"
        return float(verify(gold, parse(_spaced(answer), parsing_timeout=None), timeout_seconds=None))

    result: float | str = 1.0
    while True:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(result), file=replies, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds)
        result = compare(*json.loads(line))


def _spaced(text: str) -> str:
    """The text with space around Chinese, without which math-verify finds no number there, and with full-width forms made plain."""
    return _CHINESE.sub(r" \g<0> ", text.translate(_PLAIN))


def _marked(reference: str) -> str:
    """The reference in marks of mathematics, if it is LaTeX without any: of bare LaTeX only numbers would be found."""
    bare = "\\" in reference and not any(mark in reference for mark in ("$", "\\(", "\\[", "\\boxed", "\\begin"))
    return f"${reference}$" if bare else reference


if __name__ == "__main__":
    main()
