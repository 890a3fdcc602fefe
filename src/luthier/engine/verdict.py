"""The one line that every run ends with: how well the machine was used, and what stood in the way.

Model FLOPs utilisation (MFU, Chowdhery et al. 2022) compares the arithmetic that the method needs with what this machine's own matrix
product reaches in the same dtype, measured on the spot. Per real token a linear layer of N weights costs 2 N for the forward pass, 2 N for
the gradient of its input and 2 N for that of its weights if they are trained; attention is left out, so long segments look a little
worse than they are. Padding is not work: a padded batch shows a lower MFU.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from luthier.engine.loop import Executed
from luthier.models.linear import dense_parameters, quantised_layers, shape_of
from luthier.models.policy import Policy


def flops_per_token(policy: Policy, supervised_share: float) -> float:
    """Floating-point operations that one real token needs, forward and backward.

    Args:
        policy: the model with its method.
        supervised_share: share of tokens that reach the output head.
    """
    trained = {id(parameter) for parameter in policy.trainable.parameters.values()}
    head = policy.head.weight
    embeddings = {id(module.weight) for module in policy.model.modules() if isinstance(module, torch.nn.Embedding)}
    total = 0.0
    for parameter in dense_parameters(policy.model):
        if parameter.ndim >= 2 and id(parameter) not in embeddings and parameter is not head:
            total += parameter.numel() * (6 if id(parameter) in trained else 4)
    total += sum(4 * math.prod(shape_of(layer)) for layer in quantised_layers(policy.model).values())
    return total + head.numel() * supervised_share * (6 if id(head) in trained else 4)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this machine, the best of five.

    On a CPU the time is what the threads have computed, not what a clock on the wall shows: what else is running now, and may not have
    been while the model was trained, would make the machine look slower than it is.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    clock, lanes = (time.perf_counter, 1) if device.type == "cuda" else (time.process_time, torch.get_num_threads())
    best = float("inf")
    for _ in range(5):
        began = clock()
        product = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (clock() - began) / lanes)
        del product
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Most memory this process has held, in bytes: of the GPU where there is one, else resident.

    Linux is asked for the high-water mark of this very program; `getrusage` counts the process that it was forked from too.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def verdict(policy: Policy, executed: Executed, *, supervised_share: float, packing: bool, notes: list[str]) -> str:
    """The line itself.

    Args:
        policy: the model as it was trained.
        executed: what this process computed.
        supervised_share: share of tokens that reach the output head.
        packing: segments were laid end to end.
        notes: fallbacks taken and why.
    """
    device, dtype = policy.device, policy.dtype
    rate = executed.real / max(executed.seconds, 1e-9)
    used = rate * flops_per_token(policy, supervised_share) / peak_flops(device, dtype)
    attention = getattr(policy.model.config, "_attn_implementation", "unknown")
    layout = "packed" if packing else "padded by length"
    parts = [
        f"attention {attention}, {layout}, {executed.real / max(executed.computed, 1):.0%} of computed tokens real",
        f"{rate:,.0f} tokens/s",
        f"MFU {used:.0%} of this machine's {str(dtype).removeprefix('torch.')} matrix product",
        f"peak memory {peak_memory(device) / 2**30:.2f} GiB",
        "fallbacks: " + ("; ".join(notes) if notes else "none"),
    ]
    return " · ".join(parts)
