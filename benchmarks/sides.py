"""The sides of the benchmark and their environments.

Each peer has an environment of its own under `benchmarks/.envs`, made from the pins in `peers/<name>.txt` with the same torch for all;
Luthier runs in the environment that runs the benchmark. A peer that cannot be installed is `Unavailable`, with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".envs"
TORCH = "torch==2.13.0"


class Unavailable(Exception):
    """A side that cannot be installed or run; the message is the reason."""


@dataclass(frozen=True)
class Side:
    """One library in the benchmark.

    Attributes:
        name: of its script `peers/with_<name>.py`, its pins `peers/<name>.txt` and its environment.
        title: as people write it, with the version.
        help: arguments of the command whose CPU time is its `--help`.
        unwanted: packages to take out again after the installation, because they break on a CPU.
        stub: a package that is imported but not used: an empty module in its place.
        settings: those it is measured in; one whose defaults are its best has `best` alone.
    """

    name: str
    title: str
    help: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    stub: str = ""
    settings: tuple[str, ...] = ("best", "default")

    @property
    def pins(self) -> Path:
        """The requirements file."""
        return HERE / "peers" / f"{self.name}.txt"

    @property
    def script(self) -> Path:
        """The script that makes one run."""
        return HERE / "peers" / f"with_{self.name}.py"

    def ready(self) -> Path:
        """The folder of the environment's programs, installed if it is missing or its pins have changed.

        Raises:
            Unavailable: the installation failed.
        """
        if not self.pins.exists():
            return Path(sys.executable).parent
        folder = ENVIRONMENTS / self.name
        stamp, wanted = folder / "installed", f"{TORCH}\n{self.pins.read_text(encoding='utf-8')}"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            self._install(folder)
            stamp.write_text(wanted, encoding="utf-8")
        return folder / "bin"

    def _install(self, folder: Path) -> None:
        """A new environment: torch first and by itself, so that no dependency brings another build of it."""
        print(f"installing {self.title} in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        constraint = folder / "constraints.txt"
        constraint.write_text(f"{TORCH}\n", encoding="utf-8")
        pip = [str(folder / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([*pip, "install", TORCH, "numpy"])
        _call([*pip, "install", "-c", str(constraint), "-r", str(self.pins)])
        if self.unwanted:
            _call([*pip, "uninstall", "--yes", *self.unwanted])
        if self.stub:
            place = next(folder.glob("lib/python*/site-packages")) / f"{self.stub}.py"
            place.write_text('"""Stands in for a package that is imported but not used here."""\n', encoding="utf-8")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(f"installation failed: {lines[-1] if lines else done.returncode}")


LUTHIER = Side("luthier", "Luthier", ("luthier", "--help"))
PEERS = {
    side.name: side
    for side in (
        Side("trl", "TRL 1.16", ("trl", "sft", "--help")),
        Side("llamafactory", "LLaMA-Factory 0.9.5", ("llamafactory-cli", "version"), ("torchvision", "torchaudio"), "torchaudio"),
        Side("litgpt", "litgpt 0.5.13", ("litgpt", "--help"), settings=("best",)),
        Side("swift", "ms-swift 4.6", ("swift", "sft", "--help")),
    )
}
