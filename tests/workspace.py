"""A small world to train in: a random Llama with the embedded tokenizer, a handful of rows, a recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.families import save

TINY = Path(__file__).resolve().parent.parent / "src" / "luthier" / "models" / "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def small_model(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A random model of the family with the embedded model's tokenizer beside it."""
    vocabulary = json.loads((TINY / "config.json").read_text())["vocab_size"]
    save(family, folder, seed=seed, vocab_size=vocabulary, **changes)
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, folder / name)
    return folder


def alpaca_rows(count: int) -> list[dict[str, str]]:
    """Rows of unlike length."""
    return [
        {"instruction": f"Count to {n}.", "input": "", "output": ", ".join(str(i) for i in range(1, 2 + n % 13))}
        for n in range(count)
    ]


@dataclass(frozen=True)
class Workspace:
    """A folder with `model/`, `rows.json`, `recipe.yaml`; runs go to `runs/`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, *, rows: int = 20, family: str = "llama", **recipe: Any) -> Workspace:
        """Fill a folder. `recipe` overrides sections of the default recipe, key by key."""
        folder.mkdir(parents=True, exist_ok=True)
        small_model(folder / "model", family)
        (folder / "rows.json").write_text(json.dumps(alpaca_rows(rows), ensure_ascii=False))
        values: dict[str, Any] = {
            "name": "first",
            "model": {"path": "model"},
            "data": {"train": ["rows.json"], "max_length": 128},
            "stage": "sft",
            "method": {"type": "lora", "rank": 4, "dropout": 0.1},
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "micro_batch_tokens": 128},
            "checkpoint": {"every": 3, "keep": 2},
            "report_to": [],
        }
        for section, fields in recipe.items():
            values[section] = (
                {**values[section], **fields} if isinstance(values.get(section), dict) and "type" not in fields else fields
            )
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
        return cls(folder)

    @property
    def recipe(self) -> Path:
        """The recipe file."""
        return self.folder / "recipe.yaml"

    def run(self, name: str = "first") -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def luthier(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in this folder, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "luthier", *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def weights_of(folder: Path) -> dict[str, Any]:
    """All tensors of the safetensors files in a model folder."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
