"""One run of one side, measured from outside and inside.

The script's own `Meter` reports CPU seconds, tokens and losses; from outside come peak memory (PSS of the process and its children,
polled) and the reason when a run fails. Every run has one thread, its own caches and no network.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sides import Side, Unavailable

POLL_SECONDS, TIME_LIMIT_SECONDS = 0.25, 1800
MEGABYTE = 2**20


@dataclass(frozen=True)
class Case:
    """What is run: `lora` or `full`, `fp32` or `bf16`, `best` or `default` setting, on which rows."""

    method: str
    precision: str
    setting: str
    data: Path
    only_start: bool = False


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        begin: CPU seconds (`cpu`) and wall seconds (`wall`) at the start of step 1.
        steps: the same at the end of each step, with its real `tokens` and `computed` tokens.
        losses: loss of each step.
        peak: largest PSS in MiB.
    """

    begin: dict[str, float]
    steps: list[dict[str, float]]
    losses: list[float]
    peak: float

    @property
    def speed(self) -> float:
        """Real tokens per CPU-second between the end of the first step, the warm-up, and the end of the last."""
        return sum(step["tokens"] for step in self.steps[1:]) / (self.steps[-1]["cpu"] - self.steps[0]["cpu"])

    @property
    def padding(self) -> float:
        """Computed tokens for each real one."""
        return sum(step["computed"] for step in self.steps) / sum(step["tokens"] for step in self.steps)

    @property
    def tokens(self) -> list[int]:
        """Real tokens of each step."""
        return [int(step["tokens"]) for step in self.steps]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Measured:
        """From plain data."""
        return cls(**{name: values[name] for name in ("begin", "steps", "losses", "peak")})


def measure(side: Side, case: Case, model: Path, work: Path) -> Measured:
    """Run the side's script on the case.

    Args:
        side: who.
        case: what.
        model: the model's folder.
        work: a folder for temporary files.

    Raises:
        Unavailable: the run failed.
    """
    programs, folder = side.ready(), work / f"run-{side.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report, task, log = folder / "report.json", folder / "task.json", folder / "log.txt"
    values = {"method": case.method, "precision": case.precision, "setting": case.setting, "only_start": case.only_start}
    paths = {"model": str(model), "data": str(case.data), "folder": str(folder), "report": str(report)}
    task.write_text(json.dumps(values | paths | {"launched": time.time()}), encoding="utf-8")
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(programs / "python"), str(side.script), str(task)],
            cwd=folder,
            env=_environment(programs, folder),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        peak = _watch(process)
    if process.returncode:
        raise Unavailable(_last_words(log))
    read = json.loads(report.read_text(encoding="utf-8"))
    if read["begin"] is None or not read["steps"]:
        raise Unavailable("no optimizer step was seen")
    return Measured.of(read | {"peak": peak / MEGABYTE})


def help_seconds(side: Side, work: Path, times: int = 3) -> float:
    """Median CPU seconds of the side's `--help`.

    Raises:
        Unavailable: it does not succeed.
    """
    programs, seconds = side.ready(), []
    for _ in range(times):
        before = _children()
        command = [str(programs / side.help[0]), *side.help[1:]]
        done = subprocess.run(command, env=_environment(programs, work), cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{' '.join(side.help)} ends with {done.returncode}")
        seconds.append(_children() - before)
    return statistics.median(seconds)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _environment(programs: Path, folder: Path) -> dict[str, str]:
    """One thread, own caches, no network, no accelerator."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    caches = {name: str(folder / "cache" / name) for name in ("HF_HOME", "LUTHIER_CACHE", "MODELSCOPE_CACHE", "TRITON_CACHE_DIR")}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    more = {"PATH": f"{programs}:{os.environ.get('PATH', '')}", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **dict.fromkeys(names, "1"), **caches, **offline, **more}


def _watch(process: subprocess.Popen[bytes]) -> float:
    """Wait for the process, and return the largest PSS in bytes of it and its children."""
    peak, end = 0.0, time.monotonic() + TIME_LIMIT_SECONDS
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):  # one of them has just ended
            peak = max(peak, sum(one.memory_full_info().pss for one in (root, *root.children(recursive=True))))
        if time.monotonic() > end:
            process.kill()
        time.sleep(POLL_SECONDS)
    return peak


def _last_words(log: Path) -> str:
    """The last line of a failed run that names an error, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0]]
    return (named or lines or ["it said nothing"])[-1][:200]
