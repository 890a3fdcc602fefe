"""What each kernel saves on this CPU: forward and backward beside the plain form, at the sizes of the benchmark's 27.8M Llama.

    OMP_NUM_THREADS=1 python benchmarks/fused.py

Milliseconds of CPU time, the best of many, for 900 tokens (attention: segments as long as alpaca rows). Tests hold each kernel to its
definition; this is only about time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from luthier.engine.allocator import keep_freed_memory
from luthier.kernels.attention import segment_attention
from luthier.kernels.logprob import token_logprobs
from luthier.kernels.lora import lora_linear, lora_linear_reference
from luthier.kernels.norm import rms_norm
from luthier.kernels.rotary import rotate

TOKENS, HIDDEN, INNER, VOCABULARY, RANK = 900, 512, 1408, 8192, 8
HEADS, GROUPS, SIZE = 8, 4, 64
LENGTHS = [287, 211, 140, 98, 77, 50, 37]
REPEATS = 15

Form = Callable[[], Tensor | tuple[Tensor, ...]]


def milliseconds(form: Form, leaves: list[Tensor]) -> float:
    """Best CPU time of a forward and backward pass."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        out = form()
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outs, leaves, [torch.ones_like(each) for each in outs])
        best = min(best, time.process_time() - began)
    return best * 1000


def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype).requires_grad_()


def heads(count: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """[1, count, T, D] as projections give it: heads interleaved in memory."""
    return torch.randn(1, tokens, count, SIZE).to(dtype).transpose(1, 2).requires_grad_()


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's own kernel on each segment."""
    key, value = (tensor.repeat_interleave(HEADS // GROUPS, 1) for tensor in (key, value))
    parts = zip(*(tensor.split(LENGTHS, 2) for tensor in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts], 2)


def forms(dtype: torch.dtype) -> dict[str, tuple[Form, Form, list[Tensor]]]:
    """Name → the kernel, the plain form, and what gets a gradient."""
    x, weight = leaf(1, TOKENS, HIDDEN, dtype=dtype), torch.randn(INNER, HIDDEN).to(dtype) / 20
    a, b = leaf(RANK, HIDDEN, dtype=dtype), leaf(INNER, RANK, dtype=dtype)
    norm = LlamaRMSNorm(HIDDEN).to(dtype).requires_grad_(False)
    query, key, value = heads(HEADS, sum(LENGTHS), dtype), heads(GROUPS, sum(LENGTHS), dtype), heads(GROUPS, sum(LENGTHS), dtype)
    cos, sin = torch.randn(2, 1, sum(LENGTHS), SIZE).to(dtype)
    rows, head = leaf(TOKENS, HIDDEN, dtype=dtype), leaf(VOCABULARY, HIDDEN, dtype=dtype, scale=0.02)
    frozen, targets = head.detach(), torch.randint(0, VOCABULARY, (TOKENS,))
    found: dict[str, tuple[Form, Form, list[Tensor]]] = {
        "norm": (lambda: rms_norm(x, norm.weight, 1e-6), lambda: norm(x), [x]),
        "rotation": (lambda: rotate(query, key, cos, sin), lambda: apply_rotary_pos_emb(query, key, cos, sin), [query, key]),
        "adapter": (
            lambda: lora_linear(x, weight, None, a, b, 2.0),
            lambda: lora_linear_reference(x, weight, None, a, b, 2.0),
            [x, a, b],
        ),
        "frozen head": (
            lambda: token_logprobs(rows, frozen, targets).logprob,
            lambda: cross_entropy(linear(rows, frozen).float(), targets, reduction="none"),
            [rows],
        ),
        "trained head": (
            lambda: token_logprobs(rows, head, targets).logprob,
            lambda: cross_entropy(linear(rows, head).float(), targets, reduction="none"),
            [rows, head],
        ),
    }
    if dtype == torch.bfloat16:
        ours: Form = lambda: segment_attention(query[0], key[0], value[0], LENGTHS, SIZE**-0.5)  # noqa: E731
        found["attention"] = ours, lambda: plain_attention(query, key, value), [query, key, value]
    return found


def main() -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    print("| kernel | type | plain, ms | kernel, ms | ratio |\n|---|---|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        for name, (ours, plain, leaves) in forms(dtype).items():
            theirs, mine = milliseconds(plain, leaves), milliseconds(ours, leaves)
            print(f"| {name} | {str(dtype).removeprefix('torch.')} | {theirs:.1f} | {mine:.1f} | {theirs / mine:.2f} |")


if __name__ == "__main__":
    main()
