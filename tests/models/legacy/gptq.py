"""A layer in four bits as AutoGPTQ stores it, written and read number by number, and old Qwen checkpoints made of such layers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 8
"""Inputs that share a scale; 128 in published files."""
WORD = 8
"""Numbers of four bits in an int32."""


def four_bits(weight: Tensor) -> dict[str, Tensor]:
    """A layer as AutoGPTQ stores it, written out number by number."""
    outputs, inputs = weight.shape
    groups = inputs // GROUP
    blocks = weight.T.reshape(groups, GROUP, outputs)
    scales = ((blocks.amax(1) - blocks.amin(1)) / 15).half()
    zeros = (-blocks.amin(1) / scales).round().clamp(0, 15).int()
    numbers = (blocks / scales[:, None] + zeros[:, None]).round().clamp(0, 15).int().reshape(inputs, outputs)
    qweight = torch.zeros(inputs // WORD, outputs, dtype=torch.int64)
    for row in range(inputs):
        qweight[row // WORD] |= numbers[row].long() << (4 * (row % WORD))
    qzeros = torch.zeros(groups, outputs // WORD, dtype=torch.int64)
    for column in range(outputs):
        qzeros[:, column // WORD] |= ((zeros[:, column].long() - 1) % 16) << (4 * (column % WORD))
    packed = {name: (value - (value >= 2**31) * 2**32).int() for name, value in (("qweight", qweight), ("qzeros", qzeros))}
    return packed | {"scales": scales, "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP}


def meant(layer: dict[str, Tensor]) -> Tensor:
    """The weight that a stored layer stands for, read number by number."""
    numbers, zeros, scales = (layer[name].tolist() for name in ("qweight", "qzeros", "scales"))

    def number(i: int, o: int) -> float:
        group = int(layer["g_idx"][i])
        q = (numbers[i // WORD][o] >> (4 * (i % WORD))) & 15
        z = (((zeros[group][o // WORD] >> (4 * (o % WORD))) & 15) + 1) & 15
        return scales[group][o] * (q - z)

    inputs, outputs = len(layer["g_idx"]), layer["scales"].shape[1]
    return torch.tensor([[number(i, o) for i in range(inputs)] for o in range(outputs)])


def in_four_bits(source: Path, packed: Path, plain: Path) -> None:
    """Turn two copies of an old Qwen into one in AutoGPTQ's layout, and one with the very weights that it stands for."""
    weights = load_file(source / "model.safetensors")
    stored = dict(weights)
    for name in [name for name in weights if ".attn.c_" in name or ".mlp." in name]:
        if name.endswith(".weight"):
            layer = four_bits(weights[name])
            stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in layer.items()}
            weights[name] = meant(layer)
            del stored[name]
            if "c_attn" not in name:
                stored[f"{name.removesuffix('weight')}bias"] = torch.zeros(len(weights[name]))  # as AutoGPTQ wrote them
    config = json.loads((source / "config.json").read_text())
    settings = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "damp_percent": 0.01, "quant_method": "gptq"}
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": settings, "fp16": True}))
    save_file(stored, packed / "model.safetensors")
    save_file(weights, plain / "model.safetensors")
