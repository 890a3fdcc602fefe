"""The optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Positive, Section, Share


class Train(Section):
    """The optimisation."""

    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the training examples; a fraction ends inside an epoch."""
    max_steps: Positive | None = None
    """Optimizer steps in all; takes the place of `epochs`."""
    batch_size: Positive | None = None
    """Examples per optimizer step, over all ranks and micro-batches. Default 8 (except for stage `pt`)."""
    batch_tokens: Positive | None = None
    """Tokens per optimizer step instead of examples. The default way for stage `pt` (16 × `data.max_length`)."""
    micro_batch_tokens: Positive | Literal["auto"] = "auto"
    """Most tokens in one forward pass. Memory grows with it; the result does not depend on it."""
    per_device_batch_size: Positive | None = None
    """Examples per forward pass on one device: with the next field, another way to write `batch_size`."""
    gradient_accumulation_steps: Positive | None = None
    """Forward passes per optimizer step: batch_size = per_device_batch_size × this × ranks."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate. Usual: 1e-4…3e-4 for LoRA, 1e-5…5e-5 for full fine-tuning."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Course of the learning rate after warm-up. `wsd`: constant, then linear decay over the last `decay` share."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Linear warm-up: a share of all steps if below 1, else a number of steps."""
    decay: Share = 0.2
    """Share of all steps over which `wsd` decays."""
    min_learning_rate: Share = 0.0
    """Where the schedule ends, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay, on matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW: decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW: decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW: added to the root of the second moment."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward. `auto`: bf16 on a GPU that has it (else fp16), fp32 on a CPU."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Recompute activations in the backward pass: slower, less memory. `selective` keeps attention outputs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of everything random: order, adapters, dropout, sampling."""
    log_every: Positive = 1
    """Write metrics every so many steps."""
    stop_at_loss: float | None = None
    """End the run when the training loss (mean over the last 10 steps) falls below this."""
    max_bad_steps: Positive = 10
    """Stop after this many steps in a row whose loss or gradient was not finite; such steps change nothing."""

    @model_validator(mode="after")
    def _one_batch_size(self) -> Train:
        if self.batch_size and self.batch_tokens:
            raise ValueError("give `batch_size` (examples) or `batch_tokens`, not both")
        if self.batch_tokens and (self.per_device_batch_size or self.gradient_accumulation_steps):
            raise ValueError("`batch_tokens` cannot be combined with `per_device_batch_size` or `gradient_accumulation_steps`")
        return self
