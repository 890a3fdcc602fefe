"""The recipe: one frozen description of one run.

Each field carries one docstring. It is the help of the command line, the label of the web form, the text of the JSON schema and
the reference page of the docs, so it is written for the person who fills the field in: what it does, its unit, when to change it.

A recipe says *what* is learnt. `micro_batch_tokens`, `packing`, `activation_checkpointing` and the like say *how* it is executed
and never change the result beyond rounding.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STREAM_WINDOW = 1000
"""Units that a stream shuffles together unless `data.order` says otherwise."""
SCHEMA_VERSION = 1
"""Raised when a recipe of an older version can no longer be read as it stands."""


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Quantization(Section):
    """Load the frozen base in few bits (QLoRA)."""

    bits: Literal[4, 8] = 4
    """Bits per weight of the base: 4 (NF4) or 8 (LLM.int8). Needs bitsandbytes."""
    double: bool = True
    """Quantise the scales of 4-bit weights too; saves 0.4 bit per weight."""


class Model(Section):
    """The model to start from."""

    path: str
    """`tiny` (the embedded model), a folder, or a hub id such as `Qwen/Qwen3-0.6B`."""
    hub: Literal["auto", "huggingface", "modelscope"] = "auto"
    """Where a hub id is fetched from. `auto` is Hugging Face, or ModelScope when `USE_MODELSCOPE_HUB=1`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """A folder or hub id to take the tokenizer from, if not the model's own."""
    adapter: str | None = None
    """A LoRA adapter (folder or hub id, PEFT format) to continue from."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights in memory. `auto` follows `train.precision`."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. `auto` takes the fastest that is installed and correct."""
    quantization: Quantization | None = None
    """Quantise the base weights when loading; only for methods that leave the base frozen."""


FormatName = Literal[
    "auto",
    "messages",
    "sharegpt",
    "xtuner",
    "moss",
    "oasst",
    "oasst_pairs",
    "seed_tasks",
    "openai_dpo",
    "hh_rlhf",
    "kto",
    "dolly",
    "samsum",
    "grammar",
    "alpaca",
    "preference",
    "prompt_completion",
    "qa",
    "guanaco",
    "human_text",
    "llama2_text",
    "prompt",
    "text",
]
"""`auto`, or the name of a format."""


class Source(Section):
    """One source of training data."""

    path: str = ""
    """A file, a folder, a pattern (`data/*.jsonl`), an address (`s3://…`) or a hub id; relative to the recipe's folder."""
    name: str = ""
    """Instead of `path`: the name of a data set in the registry (`luthier data list`)."""
    python: str = ""
    """Own code, `file.py:function`. Alone it yields rows; beside `path` or `name` it gets each row and gives what to read."""
    hub: Literal["auto", "huggingface", "modelscope"] = "auto"
    """Where a hub id is fetched from. `auto` is Hugging Face, or ModelScope when `USE_MODELSCOPE_HUB=1`."""
    subset: str | None = None
    """Subset (configuration) of a data set on a hub."""
    split: str | None = None
    """Split of a data set on a hub. Default: `train`."""
    folder: str | None = None
    """Read only this folder of a data set on a hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set on a hub."""
    documents: Literal["auto", "line", "paragraph", "file"] = "auto"
    """What a document of a `.txt` file is: a line, what stands between blank lines, or the file. `auto` looks at the file."""
    format: FormatName = "auto"
    """How rows are read. `auto` goes by the keys of the rows; `luthier data formats` lists them all."""
    columns: dict[str, str] = {}
    """Own column names: canonical name → name in the file, e.g. `{instruction: question, output: answer}`."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How many times the source is seen in one epoch; 0.5 sees half of it, 2 sees it twice."""
    max_examples: Positive | None = None
    """Use at most this many examples of the source, the first ones."""

    max_tokens: Positive | None = None
    """Train on at most this many tokens of the source, the first ones."""
    validation: Annotated[float | int, Field(ge=0)] | None = None
    """A share or a count of this source to hold out, in place of `data.validation`."""

    @model_validator(mode="after")
    def _named_once(self) -> Source:
        if not (self.path or self.name or self.python):
            raise ValueError("a source needs `path`, `name` or `python`")
        if self.path and self.name:
            raise ValueError("give `path` or `name`, not both")
        return self


class Data(Section):
    """What is learnt from, and how it becomes tokens."""

    train: tuple[Source, ...]
    """Training sources: file names, or mappings with `path` and options."""
    validation: float | int | str | tuple[Source, ...] | None = None
    """A share of each source (0.05), a count in all (200), or files. Left out of training and used by `evaluate`."""
    mix: Literal["concat", "interleave"] = "concat"
    """`concat`: sources are shuffled together, each `weight` times. `interleave`: drawn evenly, in proportion to `weight`."""
    weigh_by: Literal["examples", "tokens"] = "examples"
    """What the weights of `interleave` are shares of."""
    upsample: bool = False
    """`interleave`: an epoch lasts until every source was seen whole, short ones begin again; else until the first is used up."""
    order: Annotated[str, Field(pattern=r"^(global|window\([1-9][0-9]*\))$")] = "global"
    """`global`: an epoch is shuffled as a whole. `window(1000)`: the data's own order, shuffled within so many units."""
    streaming: bool = False
    """Read and tokenise on the way, for data too large to be prepared. Needs `train.max_steps`; the order is that of a window."""
    max_length: Positive = 1024
    """Longest segment in tokens. What is longer is cut or dropped (see `truncate`), counted and reported."""
    packing: bool = True
    """Lay segments end to end without padding. Execution only: it never changes what is learnt."""
    template: str = "auto"
    """Chat template: `auto` (the tokenizer's own), a family such as `qwen3`, a `.jinja` file, or Jinja text itself."""
    thinking: Literal["template", "keep", "strip", "drop"] = "template"
    """Thoughts in answers: as the template has it, kept in all turns, stripped from earlier turns, or dropped everywhere."""
    learn_thinking: bool = True
    """Learn the thoughts that stand in an answer; if not, they are only read, and what follows them is learnt."""
    system: str | None = None
    """System prompt for examples that bring none."""
    train_on: Literal["assistant", "all", "last"] = "assistant"
    """Which part of a conversation is supervised: all answers, every token, or only the last answer."""
    truncate: Literal["turns", "end", "start", "drop", "infer_seqlen"] = "turns"
    """What a too long segment loses: its oldest `turns`, its `end` or `start`, a share of each part (`infer_seqlen`), all (`drop`)."""
    on_error: Literal["fail", "skip"] = "fail"
    """What happens at a bad row: stop and list all of them, or leave them out and count them."""
    registry: str | None = None
    """Where sources given by `name` are looked up first: a `datasets.yaml`, or LLaMA-Factory's `dataset_info.json`."""
    variables: dict[str, str] = {}
    """Fills placeholders in the data: `{name: Luthier}` puts it in the place of `{{name}}` and `<NAME>`."""
    replace: dict[str, str] = {}
    """Replaces texts in the data, e.g. a name that is written out: `{old name: new name}`."""
    workers: Positive | None = None
    """Threads for tokenisation. Default: as many as the machine has cores, up to 8 and within `OMP_NUM_THREADS`."""

    @property
    def window(self) -> int | None:
        """The number in `order: window(n)`; None for `global`, which a stream cannot have."""
        return int(self.order[7:-1]) if self.order != "global" else STREAM_WINDOW if self.streaming else None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None or key != "train"}
        if "train" in value:
            value["train"] = _sources(value["train"])
        if isinstance(value.get("validation"), list | tuple | dict):
            value["validation"] = _sources(value["validation"])
        return value

    @model_validator(mode="after")
    def _train_and_validation(self) -> Data:
        if not self.train:
            raise ValueError("`data.train` is an empty list")
        value = self.validation
        if isinstance(value, bool) or (isinstance(value, int) and value < 0) or (isinstance(value, float) and not 0 <= value < 1):
            raise ValueError("`data.validation` should be a share below 1 (0.05), a count (200) or a file")
        counted = [value, *(source.validation for source in self.train)]
        if self.streaming and any(isinstance(wanted, int | float) and wanted for wanted in counted):
            raise ValueError("`data.validation` should be a file: of a stream nothing can be held out before it is read")
        return self


def _sources(value: Any) -> Any:
    """A name, a mapping, or a list of either, as a list of mappings."""
    entries = value if isinstance(value, list | tuple) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


class Pretraining(Section):
    """Next-token prediction over whole documents."""

    type: Literal["pt"] = "pt"


class SupervisedFineTuning(Section):
    """Learn the answers of conversations."""

    type: Literal["sft"] = "sft"


Stage = Annotated[Pretraining | SupervisedFineTuning, Field(discriminator="type")]


class Full(Section):
    """Every weight is trained."""

    type: Literal["full"] = "full"


class Freeze(Section):
    """Some modules are trained, the rest is frozen."""

    type: Literal["freeze"] = "freeze"
    layers: int = 2
    """Train the last n decoder layers; a negative number trains the first n; 0 trains none."""
    modules: tuple[str, ...] = ()
    """Also train modules whose name ends in one of these, e.g. `["q_proj", "norm"]`, in every layer."""
    embeddings: bool = False
    """Also train the token embeddings (and a tied head)."""
    head: bool = False
    """Also train the output head."""


class LoRA(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021)."""

    type: Literal["lora"] = "lora"
    rank: Positive = 8
    """Inner dimension of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank (alpha / √rank with `rslora`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input."""
    target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`."""
    rslora: bool = False
    """Rank-stabilised scaling alpha / √rank (Kalajdzievski 2023)."""
    dora: bool = False
    """Weight-decomposed adapters: train a magnitude per output (Liu et al. 2024)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and saved with the adapter, e.g. `[embed_tokens, lm_head]`."""


Method = Annotated[Full | Freeze | LoRA, Field(discriminator="type")]


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


class Samples(Section):
    """Answers to fixed prompts, so that one can read the progress."""

    every: Positive | None = None
    """Steps between sample answers; they are also taken before step 1. Default: as often as `evaluate.every`."""
    prompts: tuple[str, ...] = ()
    """Questions to answer."""
    max_new_tokens: Positive = 128
    """Longest answer in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the most likely token each time."""


class Evaluate(Section):
    """What is measured while training."""

    every: Positive | None = None
    """Steps between evaluations on `data.validation`. They also happen at the end. Default: once an epoch."""
    patience: Positive | None = None
    """Stop after this many evaluations without a better loss (early stopping)."""
    samples: Samples = Samples()
    """Sample answers during training."""


class Checkpoint(Section):
    """What is kept of the way."""

    every: Positive | None = None
    """Steps between checkpoints. Default: once an epoch. One is always written at the end."""
    keep: Positive = 2
    """Keep the last n; the best by validation loss is kept besides."""


Report = Literal["tensorboard", "wandb", "mlflow", "swanlab"]


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
    """What is learnt: `sft`, `pt`, or a mapping with `type` and options."""
    method: Method = LoRA()
    """Which weights move: `lora`, `full`, `freeze`, or a mapping with `type` and options."""
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
        if self.model.quantization and self.method.type != "lora":
            raise ValueError("`model.quantization` needs a frozen base: use `method: lora`")
        if self.data.streaming and not self.train.max_steps:
            raise ValueError("`data.streaming` needs `train.max_steps`: nobody knows how long a stream is")
        if self.evaluate.patience and self.data.validation is None:
            raise ValueError("`evaluate.patience` needs something to measure: set `data.validation`")
        return self
