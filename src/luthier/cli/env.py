"""`luthier env`: what this machine has, and what keeps it from training."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from luthier.errors import EXIT_USER


def env(as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """Show versions and hardware, and say in words what does not fit together."""
    from luthier.cli.env_diagnosis import diagnose
    from luthier.runs.environment import look_around

    here = look_around()
    findings = diagnose(here)
    if as_json:
        print(json.dumps(asdict(here) | {"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        rows = {
            "luthier": here.luthier,
            "python": here.python,
            "platform": here.platform,
            "processor": f"{here.processor}, {here.cores} cores, {here.memory / 2**30:.0f} GiB of memory",
            **{f"gpu {i}": f"{g.name}, {g.memory / 2**30:.0f} GiB, driver {g.driver}" for i, g in enumerate(here.gpus)},
            **here.packages,
        }
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name:<{width}}  {value}")
        print()
        for finding in findings:
            print(f"{'problem: ' if finding.level == 'problem' else ''}{finding.text}")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(EXIT_USER)
