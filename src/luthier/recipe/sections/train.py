"""The optimisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Positive, Section, Share
from luthier.recipe.sections.optimizer import AdamW, Optimizer, ParameterGroup, Rate


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
    optimizer: Optimizer = AdamW()
    """How gradients become updates: `adamw`, another name, or a mapping with `type` and options."""
    learning_rate: Rate = 1e-4
    """Peak learning rate. Usual: 1e-4…3e-4 for LoRA, 1e-5…5e-5 for full fine-tuning."""
    embedding_learning_rate: Rate | None = None
    """Peak learning rate of the token embeddings (and a head tied to them), where they are trained. Default: `learning_rate`."""
    head_learning_rate: Rate | None = None
    """Peak learning rate of the output head, where it is trained. Default: `learning_rate`."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Course of the learning rate after warm-up. `wsd`: constant, then linear decay over the last `decay` share."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Linear warm-up: a share of all steps if below 1, else a number of steps."""
    decay: Share = 0.2
    """Share of all steps over which `wsd` decays."""
    min_learning_rate: Share = 0.0
    """Where the schedule ends, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay, on matrices only: neither norms nor biases decay."""
    groups: tuple[ParameterGroup, ...] = ()
    """Weights with a learning rate or a weight decay of their own, by name; the first that fits counts."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    neftune: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the token embeddings while training (NEFTune, Jain et al. 2023): its alpha, usually 5 to 15. 0 is none."""
    router_aux_loss: Annotated[float, Field(ge=0)] | None = None
    """Weight of the loss that keeps experts evenly used. Default: the model's own while its routers are trained, else 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread evenly over the vocabulary. The training loss is then the smoothed one."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "pure_bf16", "fp8"] = "auto"
    """Arithmetic of forward and backward. `auto`: bf16 on a GPU that has it (else fp16), fp32 on a CPU. `pure_bf16`: no masters."""
    rounding: Literal["stochastic", "kahan"] = "stochastic"
    """`pure_bf16`: how updates smaller than a step of bfloat16 survive, by chance or in 2 more bytes a trained weight."""
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

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """`optimizer: lion` stands for a mapping; a schedule-free one has no schedule."""
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None or key != "optimizer"}
        rule = value.get("optimizer")
        if isinstance(rule, str):
            value["optimizer"] = rule = {"type": rule}
        elif isinstance(rule, dict):
            value["optimizer"] = rule = {"type": "adamw", **rule}
        if isinstance(rule, dict) and rule["type"] == "schedule_free":
            value = {"schedule": "constant", **value}
        return value

    @model_validator(mode="after")
    def _one_batch_size(self) -> Train:
        if self.batch_size and self.batch_tokens:
            raise ValueError("give `batch_size` (examples) or `batch_tokens`, not both")
        if self.batch_tokens and (self.per_device_batch_size or self.gradient_accumulation_steps):
            raise ValueError("`batch_tokens` cannot be combined with `per_device_batch_size` or `gradient_accumulation_steps`")
        return self

    @model_validator(mode="after")
    def _rule_and_precision(self) -> Train:
        rule, pure = self.optimizer, self.precision == "pure_bf16"
        if rule.type == "schedule_free" and self.schedule != "constant":
            raise ValueError(
                "`train.optimizer: schedule_free` needs `schedule: constant`: its average takes the schedule's place"
            )
        if pure and rule.type in ("schedule_free", "badam"):
            raise ValueError(f"`train.optimizer: {rule.type}` keeps float32 values of its own: use `precision: bf16`")
        if self.rounding == "kahan" and not pure:
            raise ValueError("`train.rounding: kahan` is for `precision: pure_bf16`: the others have float32 masters")
        if isinstance(rule, AdamW) and rule.offload and (pure or rule.bits == 8 or rule.paged):
            raise ValueError(
                "`train.optimizer.offload` is for 32-bit moments and masters: without `bits`, `paged` or `pure_bf16`"
            )
        return self
