"""What every optimizer costs: bytes a trained weight, by where they lie, and time of one update.

    PYTHONPATH=src python benchmarks/optimizers.py                 # a table for docs/optimizers.md
    PYTHONPATH=src python benchmarks/optimizers.py --hidden 1024   # larger matrices

The weights are those of Llama layers of the given width, trained whole. Counted are the tensors that exist between two steps:
weights, masters and remainders, gradients, and what the library keeps. Times are the median of five updates on one thread of this
machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from torch.nn import Parameter

from luthier.engine.groups import Roles
from luthier.engine.optim import Optimizer
from luthier.recipe.schema import Train

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"type": "sgd"},
    "adamw": {"type": "adamw"},
    "adamw, bits: 8": {"type": "adamw", "bits": 8},
    "adafactor": {"type": "adafactor"},
    "lion": {"type": "lion"},
    "lion, bits: 8": {"type": "lion", "bits": 8},
    "adam_mini": {"type": "adam_mini"},
    "muon": {"type": "muon"},
    "galore, rank: 64": {"type": "galore", "rank": 64},
    "apollo, rank: 64": {"type": "apollo", "rank": 64},
    "badam": {"type": "badam"},
    "schedule_free": {"type": "schedule_free"},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "pure_bf16": {"precision": "pure_bf16"},
    "pure_bf16, kahan": {"precision": "pure_bf16", "rounding": "kahan"},
}


def weights(hidden: int, layers: int, dtype: torch.dtype) -> dict[str, Parameter]:
    """The matrices and norms of Llama layers, random."""
    wide = hidden * 8 // 3 // 64 * 64
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    named = {f"layers.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in shapes.items()}
    norms = {f"layers.{layer}.input_layernorm.weight": (hidden,) for layer in range(layers)}
    return {name: Parameter(torch.randn(shape).mul_(0.02).to(dtype)) for name, shape in (named | norms).items()}


def measure(rule: dict[str, Any], precision: dict[str, Any], hidden: int, layers: int) -> tuple[list[float], float] | None:
    """Bytes a weight as [weights, masters, gradients, state], and milliseconds an update; None where a recipe refuses the pair."""
    try:
        train = Train.model_validate({"optimizer": rule, **precision})
    except ValueError:
        return None
    values = weights(hidden, layers, torch.float32 if train.precision == "fp32" else torch.bfloat16)
    roles = Roles(layers=tuple(f"layers.{layer}" for layer in range(layers)), head_size=64 * hidden)
    optimizer = Optimizer(values, train, pure=train.precision == "pure_bf16", roles=roles)
    times = []
    for step in range(6):
        optimizer.begin(step)
        for value in values.values():
            if value.requires_grad:
                (value.float() * torch.randn_like(value, dtype=torch.float32)).sum().backward()
        began = time.process_time()
        optimizer.step(torch.zeros(()), 1e-5)
        times.append(time.process_time() - began)
    count = sum(value.numel() for value in values.values())
    parts = [sum(value.nbytes for value in values.values()), *kept_bytes(optimizer).values()]
    return [part / count for part in parts], statistics.median(times[1:]) * 1000


def kept_bytes(optimizer: Optimizer) -> dict[str, int]:
    """Bytes of what exists beside the weights between two steps: masters (or remainders), gradients, the library's state."""
    masters = optimizer.masters.state()
    return {
        "masters": sum(value.nbytes for value in masters.values()),
        "gradients": sum(gradient.nbytes for gradient in optimizer.masters.gradients()),
        "state": sum(value.nbytes for name, value in optimizer.state().items() if name not in masters),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"| optimizer | its state | {' | '.join(PRECISIONS)} | CPU ms, `bf16` | CPU ms, `pure_bf16` |")
    print("|---|---|---|---|---|---|---|---|")
    for rule_name, rule in RULES.items():
        found = {name: measure(rule, precision, given.hidden, given.layers) for name, precision in PRECISIONS.items()}
        together = " | ".join(f"{sum(parts[0]):.2f}" if parts else "–" for parts in found.values())
        times = " | ".join(f"{parts[1]:.0f}" if (parts := found[name]) else "–" for name in ("bf16", "pure_bf16"))
        state = next(parts[0][-1] for parts in found.values() if parts)
        print(f"| `{rule_name}` | {state:.2f} | {together} | {times} |", flush=True)


if __name__ == "__main__":
    main()
