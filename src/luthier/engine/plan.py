"""From a recipe and a dataset to the numbers of a run: how many steps, how large a pass, when to measure and save.

The plan is written to `plan.json` before the first step, so that a person can see what will happen. A resumed run takes the parts
that rounding depends on (micro-batching, precision, packing, threads) from its checkpoint, not from the machine it finds itself on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from luthier.engine.parallel import World
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Train

Precision = Literal["fp32", "bf16", "fp16", "pure_bf16", "fp8"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "pure_bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
}
"""What the weights lie in."""
DEFAULT_BATCH_SIZE, DEFAULT_PT_SEGMENTS = 8, 16
CPU_PASS_TOKENS: dict[torch.dtype, int] = {torch.float32: 768, torch.bfloat16: 2048, torch.float16: 2048}
"""Larger passes are no faster in float32, where products take the time; in bfloat16 it is reading the weights, so a reading serves more."""
GPU_PASS_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers of a run.

    Attributes:
        total_steps: the step at which the run ends by itself.
        steps_per_epoch: optimizer steps in one pass over the data.
        batch_size: units (examples) a step, or None.
        batch_tokens: tokens a step, or None.
        micro_batch_tokens: most tokens in one forward pass.
        packing: segments are laid end to end.
        precision: arithmetic of forward and backward.
        evaluate_every, sample_every, save_every: steps between; None is never.
        threads: CPU threads.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int | None
    batch_tokens: int | None
    micro_batch_tokens: int
    packing: bool
    precision: Precision
    evaluate_every: int | None
    sample_every: int | None
    save_every: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for `plan.json` and checkpoints."""
        return asdict(self)


def choose_precision(recipe: Recipe | None, device: torch.device) -> Precision:
    """Resolve `train.precision: auto`: bf16 on a GPU that computes in it, fp16 on one that does not, fp32 on a CPU."""
    if recipe and recipe.train.precision != "auto":
        return recipe.train.precision
    if recipe and recipe.model.dtype != "auto":
        return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[recipe.model.dtype]  # type: ignore[return-value]
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def batch_of(train: Train, stage: str, max_length: int, ranks: int) -> tuple[int | None, int | None]:
    """Resolve the several ways to say how large a step is into (examples, None) or (None, tokens).

    Raises:
        UserError: `batch_size` contradicts `per_device_batch_size × gradient_accumulation_steps × ranks`.
    """
    if train.batch_tokens:
        return None, train.batch_tokens
    if train.per_device_batch_size or train.gradient_accumulation_steps:
        per_device, passes = train.per_device_batch_size or 1, train.gradient_accumulation_steps or 1
        product = per_device * passes * ranks
        if train.batch_size and train.batch_size != product:
            raise UserError(
                f"batch_size is {train.batch_size}, but per_device_batch_size × gradient_accumulation_steps × ranks is "
                f"{per_device} × {passes} × {ranks} = {product}",
                where="train.batch_size",
                hint="Leave one of the two out.",
            )
        return product, None
    if train.batch_size:
        return train.batch_size, None
    return (None, DEFAULT_PT_SEGMENTS * max_length) if stage == "pt" else (DEFAULT_BATCH_SIZE, None)


def pass_tokens(train: Train, longest: int, device: torch.device, precision: Precision) -> int:
    """Resolve `micro_batch_tokens: auto`: what fills the device well, and at least the longest segment.

    Raises:
        UserError: a given value is smaller than the longest segment, which cannot be split.
    """
    if train.micro_batch_tokens == "auto":
        return max(longest, GPU_PASS_TOKENS if device.type == "cuda" else CPU_PASS_TOKENS[DTYPES[precision]])
    if train.micro_batch_tokens < longest:
        raise UserError(
            f"{train.micro_batch_tokens} tokens cannot hold the longest segment of {longest} tokens",
            where="train.micro_batch_tokens",
            hint=f"Use at least {longest}, or a smaller data.max_length.",
        )
    return train.micro_batch_tokens


def make_plan(
    recipe: Recipe,
    *,
    steps_per_epoch: int,
    batch: tuple[int | None, int | None],
    longest: int,
    packing: bool,
    validated: bool,
    precision: Precision,
    world: World,
) -> Plan:
    """Put the numbers of a run together.

    Args:
        recipe: the recipe.
        steps_per_epoch: optimizer steps in one pass over the data.
        batch: what `batch_of` returned.
        longest: longest segment in tokens.
        packing: asked for by the recipe and safe for the model.
        validated: there are validation examples.
        precision: what `choose_precision` returned.
        world: the processes.
    """
    train, evaluate = recipe.train, recipe.evaluate
    total = train.max_steps or max(1, math.ceil(train.epochs * steps_per_epoch - 1e-9))
    samples = evaluate.samples
    return Plan(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch[0],
        batch_tokens=batch[1],
        micro_batch_tokens=pass_tokens(train, longest, world.device, precision),
        packing=packing,
        precision=precision,
        evaluate_every=(evaluate.every or steps_per_epoch) if validated else None,
        sample_every=(samples.every or evaluate.every or steps_per_epoch) if samples.prompts else None,
        save_every=recipe.checkpoint.every or steps_per_epoch,
        threads=torch.get_num_threads(),
    )
