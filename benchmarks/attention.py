"""What a packed row costs on this CPU: attention within segments against transformers' SDPA under a block-diagonal mask.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Forward and backward of two random Llamas over one row of T tokens made of equal segments; real tokens per CPU-second, the best of
three, and their ratio. Both give the same states (`tests/models/test_attention.py`).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models.attention import NAME, packed_row

SHAPES: dict[str, dict[str, Any]] = {
    "5M": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
    "27.8M": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
}


def tokens_per_second(model: LlamaForCausalLM, length: int, segment: int) -> float:
    tokens = torch.randint(0, model.config.vocab_size, (1, length))
    positions = torch.arange(length)[None] % segment
    boundaries = torch.arange(0, length + 1, segment, dtype=torch.int32)
    best = float("inf")
    for _ in range(3):
        model.zero_grad()
        began = time.process_time()
        with packed_row(boundaries, segment) as keywords:
            states = model.model(input_ids=tokens, position_ids=positions, use_cache=False, **keywords).last_hidden_state
        states.sum().backward()
        best = min(best, time.process_time() - began)
    return length / best


def main() -> None:
    print("| model | row | segments of | sdpa | within segments | ratio |\n|---|---:|---:|---:|---:|---:|")
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(**shape, num_key_value_heads=shape["num_attention_heads"] // 2, tie_word_embeddings=True)
        )
        for length in (512, 1024, 2048):
            for segment in (64, 256):
                speed = {}
                for path in ("sdpa", NAME):
                    model.set_attn_implementation(path)
                    speed[path] = tokens_per_second(model, length, segment)
                ratio = speed[NAME] / speed["sdpa"]
                print(f"| {name} | {length} | {segment} | {speed['sdpa']:,.0f} | {speed[NAME]:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
