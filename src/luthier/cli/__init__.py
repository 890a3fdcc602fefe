"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `luthier`; ends the process with its exit code."""
    if sys.platform == "win32":
        sys.exit("error: Luthier does not run on Windows itself. Install WSL2 (`wsl --install`) and use it there.")
    from luthier.cli.app import run

    sys.exit(run(sys.argv[1:]))
