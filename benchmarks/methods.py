"""What every method costs in memory, part by part: whole weights, LoRA and its kin, prefixes, and LoRA on bases in few bits.

    python benchmarks/methods.py                              # the table of docs/methods.md
    python benchmarks/methods.py --rows full "lora on nf4"    # some of its rows

The model is the random Llama of 27.8 million weights of the other benchmarks (`workload.py`), 15 % of them embeddings, trained in
bfloat16 on one thread: two steps of four alpaca rows, rank 8 where there is one. Counted are the tensors that exist between two steps,
in bytes for each weight of the model: its weights with what a method adds to them, float32 masters, gradients, and the moments of AdamW.
`peak` is what the process came to hold at any moment beyond what it held before the model was read: all of that, what is kept for the
backward pass, and room to compute. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from optimizers import kept_bytes
from torch import nn
from workload import make_model, short_rows

from luthier.engine.parallel import start_world
from luthier.engine.verdict import peak_memory
from luthier.models.linear import quantised_layers, stored_bytes
from luthier.objectives import score
from luthier.recipe.load import recipe_from
from luthier.recipe.schema import Recipe
from luthier.workshop.assembly import assemble
from luthier.workshop.watching import Watchers

DATA = Path(__file__).resolve().parents[2] / "shared/data/llamafactory/alpaca_en_demo.json"
LORA: dict[str, Any] = {"type": "lora", "rank": 8, "alpha": 16}
ROWS: dict[str, dict[str, Any]] = {
    "full": {"method": {"type": "full"}},
    "full, AdamW in 8 bits": {"method": {"type": "full"}, "train": {"optimizer": {"bits": 8}}},
    "full, pure_bf16": {"method": {"type": "full"}, "train": {"precision": "pure_bf16"}},
    "freeze, 2 of 8 layers": {"method": {"type": "freeze", "layers": 2}},
    "llama_pro, 2 blocks": {"method": {"type": "llama_pro", "blocks": 2}},
    "lora": {"method": LORA},
    "lora, rank 64": {"method": LORA | {"rank": 64}},
    "lora, dora": {"method": LORA | {"dora": True}},
    "lora, pissa": {"method": LORA | {"init": "pissa_niter_4"}},
    "adalora": {"method": {"type": "adalora"}},
    "vera": {"method": {"type": "vera"}},
    "ia3": {"method": {"type": "ia3"}},
    "oft": {"method": {"type": "oft"}},
    "boft": {"method": {"type": "boft"}},
    "p_tuning": {"method": {"type": "p_tuning"}},
    "prefix": {"method": {"type": "prefix"}},
    "prompt": {"method": {"type": "prompt"}},
    "llama_adapter": {"method": {"type": "llama_adapter"}},
    "layernorm": {"method": {"type": "layernorm"}},
    "lora on int8": {"method": LORA, "model": {"quantization": {"bits": 8}}},
    "lora on nf4": {"method": LORA, "model": {"quantization": {"bits": 4}}},
}
"""Name of a row → what its recipe says besides."""


def recipe_of(row: str, model: Path, data: Path) -> Recipe:
    """The recipe of a row."""
    said = ROWS[row]
    return recipe_from(
        {
            "model": {"path": str(model), **said.get("model", {})},
            "data": {"train": [str(data)], "max_length": 512},
            "method": said["method"],
            "train": {"max_steps": 100, "batch_size": 4, "precision": "bf16", **said.get("train", {})},
            "report_to": [],
        },
        Path.cwd(),
    )


def measure(recipe: Recipe) -> dict[str, float]:
    """Two steps in this process: `share` of the weights that is trained, bytes a weight of the model by part, `peak` in MiB."""
    world = start_world()
    before = _fresh_peak()
    made = assemble(recipe, world, Watchers())
    policy, optimizer = made.policy, made.optimizer
    policy.model.train()
    for step in range(2):
        optimizer.begin(step)
        drawn = made.batches(step)
        batch = drawn.batch(np.arange(len(drawn.segments)))
        loss = made.objective(score(policy, batch, packing=made.plan.packing), batch).total / batch.weight.sum()
        loss.backward()
        optimizer.step(loss.detach(), 1e-4)
    peak = peak_memory(world.device) - before
    trained = policy.trainable.count
    weights = policy.trainable.total - (trained if recipe.method.type not in ("full", "freeze") else 0)
    parts = {"weights": weight_bytes(policy.model), **kept_bytes(optimizer)}
    if made.allocator is not None:
        parts["state"] += sum(value.nbytes for value in made.allocator.state().values())
    return {"share": trained / weights, **{name: part / weights for name, part in parts.items()}, "peak": peak / 2**20}


def weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers of a model, each piece of memory once, layers in few bits as they are stored."""
    few = quantised_layers(model).values()
    packed = {id(tensor) for layer in few for tensor in chain(layer.parameters(), layer.buffers())}
    plain = {
        tensor.data_ptr(): tensor.nbytes for tensor in chain(model.parameters(), model.buffers()) if id(tensor) not in packed
    }
    return sum(map(stored_bytes, few)) + sum(plain.values())


def _fresh_peak() -> int:
    """Let the system measure this process's peak from here on, and return what it holds now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def line(row: str, found: dict[str, float]) -> str:
    """A row of the table."""
    parts = [found[name] for name in ("weights", "masters", "gradients", "state")]
    cells = [f"`{row}`", f"{found['share']:.2%}", *(f"{part:.2f}" for part in (*parts, sum(parts))), f"{found['peak']:,.0f}"]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="alpaca file")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--one", type=Path, metavar="MODEL", help="measure one row in this process, on this model, and print JSON"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.one is not None:
        print(json.dumps(measure(recipe_of(chosen.rows[0], chosen.one, chosen.data))))
        return
    print(
        "| method | trained | weights | masters | gradients | moments | together | peak, MiB |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        model, data = make_model(Path(folder) / "model"), Path(folder) / "rows.json"
        data.write_text(json.dumps(short_rows(chosen.data, 8, model, 512)), encoding="utf-8")
        for row in chosen.rows:
            command = [sys.executable, __file__, "--one", str(model), "--data", str(data), "--rows", row]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(line(row, json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
