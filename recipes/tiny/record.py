"""What is written down about a build of the embedded model: what went in, what came out, where and how well.

`build.json` lies beside the weights. A rebuild with the same versions, Luthier's own commit among them, on the same kind of
processor gives the same digests, and where one differs the first that does says at which step the two went apart.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examine import EXAM, examine, rows_of
from perplexity import measure

PACKAGES = ("luthier", "torch", "transformers", "tokenizers", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What decides by which instructions bfloat16 matrices are multiplied."""


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def processor() -> str:
    """The processor's name and those of its abilities that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.is_file() else ""
    name = re.search(r"model name\s*: (.+)", text)
    flags = re.search(r"flags\s*: (.+)", text)
    able = [flag for flag in FLAGS if flags and flag in flags[1].split()]
    return f"{name[1] if name else platform.processor()} ({', '.join(able) or platform.machine()})"


def note_commit(work: Path) -> None:
    """Write down, before the first training, which commit of Luthier trains; where there is no git nothing is written."""
    note = work / "commit"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True) if shutil.which("git") else None
    if not note.exists() and found and found.returncode == 0:
        note.write_text(found.stdout, "utf-8")


def versions(work: Path) -> dict[str, str]:
    """Versions of all that decides about bits; Luthier's with its commit."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    note = work / "commit"
    return {**found, "luthier": f"{found['luthier']} at {note.read_text('utf-8').strip()}"} if note.exists() else found


def training(run: Path) -> dict[str, Any]:
    """Tokens, steps and losses of a run, from what it wrote itself."""
    records = rows_of(run / "metrics.jsonl")
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    steps = {record["step"]: record for record in records if "loss" in record}
    held_out = [record["eval_loss"] for record in records if "eval_loss" in record]
    return {
        "validation": plan["data"]["validation"],
        "tokens": sum(record["tokens"] for record in steps.values()),
        "steps": len(steps),
        "epochs": round(max(record["epoch"] for record in steps.values()), 2),
        "seconds": round(sum(record["seconds"] for record in steps.values())),
        "first_loss": round(steps[min(steps)]["loss"], 3),
        "last_loss": round(steps[max(steps)]["loss"], 3),
        "held_out_loss": round(held_out[-1], 4) if held_out else None,
    }


def record(work: Path, folder: Path) -> dict[str, Any]:
    """Everything about the build whose steps lie in `work` and whose result is in `folder`; the model is examined for it."""
    documents = rows_of(work / "corpus.jsonl")
    held_out = rows_of(work / "corpus_heldout.jsonl")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    inputs = ("corpus.jsonl", "corpus_heldout.jsonl", "dialogues.jsonl", "counted.jsonl")
    outputs = ("tokenizer.json", "chat_template.jinja", "model.safetensors")
    return {
        "processor": processor(),
        "threads": 1,
        "versions": versions(work),
        "sha256": {
            **{name: digest(work / name) for name in inputs},
            "exam.jsonl": digest(EXAM),
            **{name: digest(folder / name) for name in outputs},
        },
        "weights": weights_in(folder),
        "vocabulary": config["vocab_size"],
        "documents": len(documents),
        "corpus_bytes": sum(len(row["text"].encode()) for row in documents),
        "dialogues": len(rows_of(work / "dialogues.jsonl")),
        "runs": {name: training(work / "runs" / name) for name in ("pretrain", "chat")},
        "perplexity": {
            "pretrained": measure(work / "runs/pretrain/final", held_out),
            "published": measure(folder, held_out),
        },
        "exam": examine(folder, rows_of(EXAM)),
    }


def weights_in(folder: Path) -> int:
    """How many numbers the model is made of."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  (no mapping, only its methods)
