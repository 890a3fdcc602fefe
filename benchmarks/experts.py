"""A layer of experts with adapters: Luthier's grouped pass beside PEFT's `target_parameters`, and beside transformers' own without any.

    OMP_NUM_THREADS=1 python benchmarks/experts.py

CPU-seconds of a forward and backward pass through one layer of a Qwen3-MoE, the best of several, and the peak of what is kept between the
two passes and made on the way, counted by torch's profiler. Both adapters have the same numbers and give the same gradients (tests).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import peft
import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from luthier.engine.allocator import keep_freed_memory
from luthier.models.adapters.experts import LoRAExperts

HIDDEN, INNER, RANK, REPEATS = 512, 256, 8, 7
CASES = [(16, 2, 900), (64, 8, 900), (64, 8, 128)]
"""Experts, how many each token goes to, tokens."""
PARTS = ("gate_up_proj", "down_proj")


def block(experts: int, chosen: int, dtype: torch.dtype) -> nn.Module:
    """One layer's router and experts."""
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, moe_intermediate_size=INNER, num_experts=experts, num_experts_per_tok=chosen, hidden_act="silu"
    )
    config._experts_implementation = "grouped_mm"
    torch.manual_seed(0)
    made = Qwen3MoeSparseMoeBlock(config).to(dtype)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)
    return made.requires_grad_(False)


def plain(experts: int, chosen: int, dtype: torch.dtype) -> nn.Module:
    """transformers' own experts, frozen."""
    return block(experts, chosen, dtype)


def ours(experts: int, chosen: int, dtype: torch.dtype) -> nn.Module:
    """The same with Luthier's adapters."""
    made = block(experts, chosen, dtype)
    made.experts = LoRAExperts(
        made.experts,  # type: ignore[arg-type]
        dict.fromkeys(PARTS, (RANK, 16.0)),
        generator=torch.Generator().manual_seed(0),
    )
    return made


def theirs(experts: int, chosen: int, dtype: torch.dtype) -> nn.Module:
    """The same with PEFT's."""
    holder = nn.Module()
    holder.mlp = block(experts, chosen, dtype)
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=[], target_parameters=[f"experts.{part}" for part in PARTS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, holder)
    return holder.mlp


def measured(layer: nn.Module, tokens: int, dtype: torch.dtype) -> tuple[float, float]:
    """Best CPU time in milliseconds, and MiB that one pass allocates."""
    states = torch.randn(1, tokens, HIDDEN, dtype=dtype, requires_grad=True)

    def run() -> None:
        found: Tensor = layer(states)
        found.backward(torch.ones_like(found))

    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    with torch.profiler.profile(profile_memory=True) as watched:
        run()
    made = sum(max(0, event.self_cpu_memory_usage) for event in watched.key_averages())
    return best * 1000, made / 2**20


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    forms: dict[str, Callable[[int, int, torch.dtype], nn.Module]] = {"no adapter": plain, "Luthier": ours, "PEFT": theirs}
    print(
        "| experts, of them chosen, tokens | type | " + " | ".join(f"{name}, ms (MiB)" for name in forms) + " | PEFT / Luthier |"
    )
    print("|---|---|" + "---:|" * (len(forms) + 1))
    for experts, chosen, tokens in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            cells = {name: measured(form(experts, chosen, dtype), tokens, dtype) for name, form in forms.items()}
            texts = " | ".join(f"{spent:.0f} ({size:.0f})" for spent, size in cells.values())
            ratio = cells["PEFT"][0] / cells["Luthier"][0]
            print(f"| {experts}, {chosen}, {tokens} | {str(dtype).removeprefix('torch.')} | {texts} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
