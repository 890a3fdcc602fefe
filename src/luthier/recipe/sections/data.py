"""What is learnt from: sources, and how they become tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Positive, Section

STREAM_WINDOW = 1000
"""Units that a stream shuffles together unless `data.order` says otherwise."""


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
    "classification",
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
    control_tokens: Literal["auto", "text", "tokens"] = "auto"
    """What `<|im_end|>` means where the data has it written: mere `text`, the `tokens`, or `auto`: text, but in documents tokens."""
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
