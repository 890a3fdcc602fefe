"""What few bits cost: LoRA on the embedded model, plain and in every kind of quantised base, and merged in both ways.

    python benchmarks/quantised.py                                     # the table of docs/quantization.md, about 8 CPU-minutes
    python benchmarks/quantised.py --kinds nf4 --steps 50              # one row

The runs differ in the base alone, and in one row in how the adapter begins: the same conversations, order, first adapter and learning
rate, single precision. `memory` is what the quantised layers take, scales and tables included, as a share of 16 bits. `loss` is the mean
training loss of the last third of the steps and its difference from plain LoRA's. Perplexities are of conversations held out: of the base
before training, of the adapter on the base it was trained on, then of the two models that `luthier export merge` writes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

import luthier
from luthier.engine.evaluate import evaluate
from luthier.engine.parallel import start_world
from luthier.export.merge import merge
from luthier.models.linear import quantised_layers, shape_of, stored_bytes
from luthier.models.loading import load_model
from luthier.models.methods import load_adapter
from luthier.models.policy import Policy
from luthier.objectives import LIKELIHOOD
from luthier.recipe.load import recipe_from
from luthier.recipe.schema import Model, Recipe
from luthier.workshop.assembly import prepare_data

DATA = Path(__file__).resolve().parents[2] / "shared/data/llamafactory/identity.json"
KINDS: dict[str, dict[str, object] | None] = {
    "float32": None,
    "nf4": {"bits": 4},
    "nf4, init: loftq": {"bits": 4},
    "nf4, scales in 32 bits": {"type": "nf4", "double": False},
    "fp4": {"type": "fp4"},
    "int4 (hqq)": {"method": "hqq"},
    "int3 (hqq)": {"bits": 3},
    "int2 (hqq)": {"bits": 2},
    "int8 (bnb)": {"bits": 8},
    "int8 (torchao)": {"method": "torchao", "bits": 8},
    "int4 (torchao)": {"method": "torchao", "bits": 4},
    "fp8 (torchao)": {"type": "fp8"},
}
"""Name of a row → what the recipe says of the base."""
STARTS = {"nf4, init: loftq": "loftq"}
"""Rows whose adapter begins otherwise than plainly."""


@dataclass(frozen=True)
class Row:
    """One kind of base. `memory`, `rounded` (perplexity of a model merged onto the quantised base) are None for a plain one."""

    kind: str
    memory: float | None
    loss: float
    before: float
    adapter: float
    merged: float
    rounded: float | None

    def cells(self, plain: float) -> list[str]:
        """The row of a table; `plain` is the loss of LoRA on the plain base."""
        memory = "1" if self.memory is None else f"{self.memory:.2f}"
        rounded = "" if self.rounded is None else f"{self.rounded:.3f}"
        difference = f"{self.loss / plain - 1:+.1%}"
        return [
            self.kind,
            memory,
            f"{self.loss:.3f} ({difference})",
            f"{self.before:.2f}",
            *(f"{x:.3f}" for x in (self.adapter, self.merged)),
            rounded,
        ]


def measure(data: Path, kinds: Sequence[str], *, steps: int, folder: Path) -> list[Row]:
    """Train and measure one base after another; runs and merged models go to `folder`."""
    return [_row(kind, _recipe(kind, data, steps), folder) for kind in kinds]


def _recipe(kind: str, data: Path, steps: int) -> Recipe:
    return recipe_from(
        {
            "model": {"path": "tiny", **({"quantization": said} if (said := KINDS[kind]) else {})},
            "data": {"train": [str(data)], "validation": 16, "max_length": 256},
            "method": {"type": "lora", "rank": 8, "alpha": 16, "init": STARTS.get(kind, "default")},
            "train": {"max_steps": steps, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"},
            "report_to": [],
        },
        Path.cwd(),
    )


def _row(kind: str, recipe: Recipe, folder: Path) -> Row:
    name = "".join(letter if letter.isalnum() else "-" for letter in kind)
    run = luthier.train(recipe.model_copy(update={"output": str(folder / "runs")}), name=name, progress=False)
    losses = [record["loss"] for record in run.metrics() if "loss" in record]
    base = load_model(recipe.model, dtype=torch.float32, device=torch.device("cpu"))
    layers = quantised_layers(base).values()
    memory = sum(map(stored_bytes, layers)) / (2 * sum(math.prod(shape_of(layer)) for layer in layers)) if layers else None
    before = _perplexity(recipe, recipe.model)
    adapter = _perplexity(recipe, recipe.model, run.path / "final")
    merged = _perplexity(recipe, Model(path=str(merge(run.path, folder / f"{name}-base", dtype="float32"))))
    rounded = None
    if memory is not None:
        rounded = _perplexity(
            recipe, Model(path=str(merge(run.path, folder / f"{name}-rounded", dtype="float32", onto="quantised")))
        )
    return Row(kind, memory, mean(losses[-len(losses) // 3 :]), before, adapter, merged, rounded)


def _perplexity(recipe: Recipe, model: Model, adapter: Path | None = None) -> float:
    """Of the held-out conversations, in evaluation mode."""
    loaded = load_model(model, dtype=torch.float32, device=torch.device("cpu"))
    if adapter is not None:
        load_adapter(loaded, adapter)
    policy = Policy(loaded)
    _, _, dataset = prepare_data(recipe)
    assert dataset.validation is not None
    measured = evaluate(
        policy,
        LIKELIHOOD,
        dataset.store,
        dataset.validation,
        micro_batch_tokens=1024,
        packing=policy.isolation.ok,
        world=start_world(),
    )
    return measured.perplexity


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="conversations")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=50)
    chosen = parser.parse_args(arguments)
    kinds = list(dict.fromkeys(["float32", *chosen.kinds]))
    print(
        "| base | memory | loss | ppl before | ppl, adapter | ppl, merged | ppl, merged onto quantised |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for kind in kinds:
            rows += measure(chosen.data, [kind], steps=chosen.steps, folder=Path(folder))
            print(f"| {' | '.join(rows[-1].cells(rows[0].loss))} |", flush=True)


if __name__ == "__main__":
    main()
