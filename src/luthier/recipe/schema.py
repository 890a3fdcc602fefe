"""The recipe: one frozen description of one run.

Each field carries one docstring. It is the help of the command line, the label of the web form, the text of the JSON schema and
the reference page of the docs, so it is written for the person who fills the field in: what it does, its unit, when to change it.

A recipe says *what* is learnt. `micro_batch_tokens`, `packing`, `activation_checkpointing` and the like say *how* it is executed
and never change the result beyond rounding.

Each section is a file in `luthier.recipe.sections`; the names below are where everyone else takes them from.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from luthier.recipe.sections.base import Section
from luthier.recipe.sections.data import STREAM_WINDOW, Data, FormatName, Source
from luthier.recipe.sections.method import (
    BOFT,
    IA3,
    OFT,
    STARTS_INSIDE,
    AdaLoRA,
    Freeze,
    Full,
    Init,
    LlamaAdapter,
    LlamaPro,
    LoRA,
    Method,
    NormTuning,
    Prefixed,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
)
from luthier.recipe.sections.model import Model, Quantization, RopeScaling
from luthier.recipe.sections.optimizer import Optimizer, ParameterGroup
from luthier.recipe.sections.stage import Stage
from luthier.recipe.sections.stages.distillation import Distillation
from luthier.recipe.sections.stages.feedback import BCO, KTO
from luthier.recipe.sections.stages.likelihood import Pretraining, SupervisedFineTuning
from luthier.recipe.sections.stages.preference import CPO, DPO, ORPO, Following, Pairwise, SimPO
from luthier.recipe.sections.stages.reinforcement import GRPO, PPO, OnlineDPO, Rollout
from luthier.recipe.sections.stages.scoring import Classification, RewardModelling
from luthier.recipe.sections.train import Train
from luthier.recipe.sections.watch import Checkpoint, Evaluate, Report, Samples
from luthier.recipe.sections.writer import VLLM

__all__ = [
    "BCO",
    "BOFT",
    "CPO",
    "DPO",
    "GRPO",
    "IA3",
    "KTO",
    "OFT",
    "ORPO",
    "PLAIN",
    "PPO",
    "SCORING",
    "STARTS_INSIDE",
    "STREAM_WINDOW",
    "VLLM",
    "WHOLE",
    "AdaLoRA",
    "Checkpoint",
    "Classification",
    "Data",
    "Distillation",
    "Evaluate",
    "Following",
    "FormatName",
    "Freeze",
    "Full",
    "Init",
    "LlamaAdapter",
    "LlamaPro",
    "LoRA",
    "Method",
    "Model",
    "NormTuning",
    "OnlineDPO",
    "Optimizer",
    "PTuning",
    "Pairwise",
    "ParameterGroup",
    "PrefixTuning",
    "Prefixed",
    "Pretraining",
    "PromptTuning",
    "Quantization",
    "Recipe",
    "Report",
    "RewardModelling",
    "Rollout",
    "RopeScaling",
    "Samples",
    "Section",
    "SimPO",
    "Source",
    "Stage",
    "SupervisedFineTuning",
    "Train",
    "VeRA",
]


SCORING = ("rm", "classify")
"""Stages whose models say numbers about a text instead of writing one."""
WHOLE = ("full", "freeze", "llama_pro")
"""Methods that train weights of the model itself."""
PLAIN = ("pt", "classify")
"""Stages that read texts as they are, without a chat template."""


class Recipe(Section):
    """The whole description of one run."""

    version: Literal[1] = 1
    """Version of this schema."""
    name: str | None = None
    """Name of the run and of its folder. Default: the recipe's file name with a number."""
    output: str = "runs"
    """Folder for runs, relative to the working directory."""
    model: Model
    """The model to start from."""
    data: Data
    """What is learnt from."""
    stage: Stage = SupervisedFineTuning()
    """What is learnt: the name of a stage, such as `sft` or `dpo`, or a mapping with `type` and options."""
    method: Method = LoRA()
    """Which weights move: the name of a method, such as `lora` or `full`, or a mapping with `type` and options."""
    train: Train = Train()
    """The optimisation."""
    evaluate: Evaluate = Evaluate()
    """Measurements and sample answers during training."""
    checkpoint: Checkpoint = Checkpoint()
    """What is kept of the way."""
    report_to: tuple[Report, ...] = ("tensorboard",)
    """Trackers beside the run folder's own metrics. All but tensorboard need their own package."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None}
        for key, default in (("stage", "sft"), ("method", "lora")):
            if isinstance(value.get(key), str):
                value[key] = {"type": value[key]}
            elif isinstance(value.get(key), dict):
                value[key] = {"type": default, **value[key]}
        if isinstance(value.get("model"), str):
            value["model"] = {"path": value["model"]}
        if isinstance(value.get("report_to"), str):
            value["report_to"] = [value["report_to"]]
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.model.quantization and self.method.type in WHOLE:
            raise ValueError("`model.quantization` needs a frozen base: use `method: lora`")
        if isinstance(self.method, LoRA) and self.method.init == "loftq" and not self.model.quantization:
            raise ValueError("`method.init: loftq` needs a quantised base: set `model.quantization`")
        if self.data.streaming and not self.train.max_steps:
            raise ValueError("`data.streaming` needs `train.max_steps`: nobody knows how long a stream is")
        if self.train.label_smoothing and self.stage.type not in ("pt", "sft"):
            raise ValueError(f"`train.label_smoothing` is for likelihoods (`pt`, `sft`), not for stage `{self.stage.type}`")
        if self.train.label_smoothing and isinstance(self.stage, SupervisedFineTuning) and self.stage.loss == "dft":
            raise ValueError("`train.label_smoothing` is for `stage.loss: nll`: `dft` weighs tokens by their probability")
        if self.stage.type == "kto" and self.stage.loss == "kto" and self.train.batch_size == 1:
            raise ValueError("`train.batch_size` must be above 1 for stage `kto`: prompts are paired with answers to others")
        if self.data.streaming and isinstance(self.stage, Rollout):
            raise ValueError(f"`data.streaming` is not for stage `{self.stage.type}`: prompts are read before the first step")
        served = isinstance(self.stage, Rollout) and self.stage.writer != "torch"
        if served and (not isinstance(self.method, LoRA) or self.method.dora):
            raise ValueError("`stage.writer: vllm` follows a LoRA adapter and nothing else: use `method: lora`, without `dora`")
        follows = getattr(self.stage, "reference", None)
        if isinstance(follows, Following) and follows.mix < 1 and self.method.type not in WHOLE:
            raise ValueError(
                "`stage.reference.mix` below 1 needs weights that are trained whole: the factors of an adapter do not mix"
            )
        if self.data.streaming and getattr(self.stage, "reference", None) == "precompute":
            raise ValueError(
                "`stage.reference: precompute` needs data that is read before the first step: leave `data.streaming` out"
            )
        if self.stage.type in SCORING and self.evaluate.samples.prompts:
            raise ValueError(
                f"`evaluate.samples` are answers, and a model of stage `{self.stage.type}` writes none: leave them out"
            )
        if (
            self.data.streaming
            and isinstance(self.stage, Classification)
            and not self.stage.labels
            and self.stage.task != "regression"
        ):
            raise ValueError("`stage.labels` has to name the labels of a stream, which nobody has read before")
        if self.evaluate.patience and self.data.validation is None and not self.evaluate.tasks:
            raise ValueError("`evaluate.patience` needs something to measure: set `data.validation` or `evaluate.tasks`")
        if self.evaluate.tasks and self.stage.type in SCORING:
            raise ValueError(
                f"`evaluate.tasks` are for models that write, and one of stage `{self.stage.type}` does not: leave them out"
            )
        title, measure, _ = self.evaluate.metric.partition("/")
        if measure and title not in {task.title() for task in self.evaluate.tasks}:
            raise ValueError(f"`evaluate.metric` names the task `{title}`, which is not among `evaluate.tasks`")
        if not measure and self.evaluate.tasks and self.data.validation is None:
            raise ValueError(
                "`evaluate.metric` has to name a measure of `evaluate.tasks`, such as `mmlu/accuracy`: there is no validation loss"
            )
        return self
