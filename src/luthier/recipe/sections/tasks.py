"""What a model is examined with: the tasks of `luthier evaluate` and of `evaluate.tasks`.

In short a task is `TYPE:PATH`, with options behind commas: `mmlu:data/mmlu,shots=0`; in full it is a mapping with `type`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from luthier.recipe.sections.base import Positive, Section
from luthier.recipe.sections.data import FormatName
from luthier.recipe.sections.rewards import Seconds, Workers

Shots = Annotated[int, Field(ge=0, le=100)]
Language = Literal["auto", "en", "zh"]
TextMetric = Literal["bleu", "chrf", "rouge", "exact_match", "f1", "json", "math", "code"]
_OPTION = re.compile(r",(?=\w+=)")


class Examination(Section):
    """What all tasks have in common."""

    name: str = ""
    """What it is called in reports; several tasks of one type need it. Default: its type."""
    limit: Positive | None = None
    """At most so many rows, the first ones; of tasks with subjects, of each subject."""

    def title(self) -> str:
        """What it is called in reports."""
        return self.name or str(getattr(self, "type", ""))


class PerplexityTask(Examination):
    """How well it foresees a text: perplexity of each token, bits of each byte. Of conversations the answers count alone."""

    type: Literal["perplexity"] = "perplexity"
    path: str
    """The data: text, or any format that is trained on."""
    format: FormatName = "auto"
    """Format of its rows."""
    columns: dict[str, str] = {}
    """Names of its columns, as `data.train` has them."""
    max_length: Positive | None = None
    """Longest window in tokens; longer texts are read in windows. Default: what the model reads, at most 2,048."""


class GenerateTask(Examination):
    """Answers to the prompts of a data file, compared with the answers that it gives."""

    type: Literal["generate"] = "generate"
    path: str
    """The data: conversations, whose last answer is the reference, or prompts with a reference."""
    format: FormatName = "auto"
    """Format of its rows."""
    columns: dict[str, str] = {}
    """Names of its columns, as `data.train` has them."""
    metrics: tuple[TextMetric, ...] = ("bleu", "rouge", "exact_match")
    """What is measured: `math` compares as mathematics, `code` runs the reference's tests, `json` is whether the answer is JSON."""
    pattern: str = ""
    """A regular expression; the pass rate is the share of answers that hold a match."""
    python: str = ""
    """A function of your own, `file.py:function`; it takes a list of answers and returns a number for each: 1 passes, 0 fails."""
    system: str = ""
    """System prompt for conversations that bring none."""
    max_new_tokens: Positive = 256
    """Longest answer in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the most likely token each time."""
    language: Language = "auto"
    """How words are found: Chinese by jieba, everything else by spaces. Default: by what the references are written in."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        import regex

        try:
            regex.compile(value)
        except regex.error as error:
            raise ValueError(f"`pattern` is not a regular expression: {error}") from None
        return value


class Questions(Examination):
    """Questions with choices, decided by which choice is the likeliest; in files as they were published."""

    path: str
    """Its folder, zip file, or file of rows."""
    shots: Shots | None = None
    """Solved examples before each question. Default: 5 for `mmlu`, `ceval` and `cmmlu`, 3 for `bbh`, else none."""
    language: Language = "auto"
    """Language of the words around the questions. Default: Chinese for `ceval` and `cmmlu`, else English."""
    chat: bool = False
    """Ask through the chat template instead of as plain text."""


class Rows(Questions):
    """Questions in a file of rows, each with its own choices."""

    examples: str = ""
    """File of the solved examples, which stand in its order. Default: none."""


class ChoiceTask(Rows):
    """Questions of your own: rows with `question`, `choices` and `answer` (the text of a choice, its letter, or its number from 0)."""

    type: Literal["choice"] = "choice"


class ARCTask(Rows):
    """ARC: science questions of a school, each choice written out."""

    type: Literal["arc"] = "arc"


class PIQATask(Rows):
    """PIQA: which of two ways to do something works."""

    type: Literal["piqa"] = "piqa"


class Subjects(Questions):
    """An examination of many subjects, a file each."""

    split: str = ""
    """Which part is asked. Default: `test`, of `ceval` `val`, whose answers are public."""
    subjects: tuple[str, ...] = ()
    """Only these subjects, by the names of their files. Default: all."""

    @field_validator("subjects", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class MMLUTask(Subjects):
    """MMLU: 57 subjects in English, four choices."""

    type: Literal["mmlu"] = "mmlu"


class CEvalTask(Subjects):
    """C-Eval: 52 subjects in Chinese, four choices."""

    type: Literal["ceval"] = "ceval"


class CMMLUTask(Subjects):
    """CMMLU: 67 subjects in Chinese, four choices."""

    type: Literal["cmmlu"] = "cmmlu"


class BBHTask(Questions):
    """BIG-Bench Hard: where a question names its choices by which is the likeliest, else by the answer that is written."""

    type: Literal["bbh"] = "bbh"
    subjects: tuple[str, ...] = ()
    """Only these subjects, by the names of their files. Default: all."""

    @field_validator("subjects", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class GSM8KTask(Examination):
    """Sums in words, of which the final number counts."""

    type: Literal["gsm8k"] = "gsm8k"
    path: str
    """A file of rows with `question` and `answer`, or the folder that holds `test.jsonl` and `train.jsonl`."""
    examples: str = ""
    """File of the solved examples. Default: `train.jsonl` of the folder."""
    shots: Shots | None = None
    """Solved examples before each question. Default: 5 where there are any, else none."""
    language: Language = "auto"
    """Language of the words around the questions. Default: English."""
    chat: bool = False
    """Ask through the chat template instead of as plain text."""
    max_new_tokens: Positive = 512
    """Longest answer in tokens."""


class HarnessTask(Examination):
    """A task of the catalogue of lm-evaluation-harness, which has to be installed: `pip install 'luthier[lm_eval]'`."""

    type: Literal["lm_eval"] = "lm_eval"
    task: str
    """Its name there, e.g. `arc_easy`."""
    shots: Shots | None = None
    """Solved examples before each question. Default: as the task has it."""

    def title(self) -> str:
        """What it is called in reports."""
        return self.name or self.task


class ForgettingTask(Examination):
    """A small fixed set of general questions and texts that comes with Luthier: what a fine-tune may have forgotten."""

    type: Literal["forgetting"] = "forgetting"


class JudgeTask(Examination):
    """Another model says which of two answers is better, asked in both orders."""

    type: Literal["judge"] = "judge"
    path: str
    """The questions: conversations, whose last answer is left out, or prompts."""
    format: FormatName = "auto"
    """Format of its rows."""
    columns: dict[str, str] = {}
    """Names of its columns, as `data.train` has them."""
    url: str
    """Where the judge is: an OpenAI-compatible address, up to `/v1`."""
    model: str
    """Name of the judge there."""
    token_env: str = ""
    """Name of an environment variable whose value is sent as bearer token."""
    allow_private: bool = False
    """Also ask addresses of this machine and of private networks."""
    criteria: str = ""
    """What the judge is to look for. Default: whether the answer is right, helpful and clear."""
    system: str = ""
    """System prompt for conversations that bring none."""
    max_new_tokens: Positive = 512
    """Longest answer in tokens."""
    language: Language = "auto"
    """Language in which the judge is asked. Default: English."""
    timeout: Seconds = 120
    """Seconds for one request."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a request is tried again that got no answer, or status 429 or 5xx; each wait is twice as long as the one before."""
    workers: Workers = 4
    """Requests at the same time."""


Alone = (
    PerplexityTask
    | GenerateTask
    | ChoiceTask
    | MMLUTask
    | CEvalTask
    | CMMLUTask
    | ARCTask
    | PIQATask
    | BBHTask
    | GSM8KTask
    | HarnessTask
    | ForgettingTask
)
"""Tasks that one model is examined with."""
Task = Annotated[Alone | JudgeTask, Field(discriminator="type")]


def task_path(text: str, base: Path) -> str:
    """A task in short with its path made absolute against `base`.

    Args:
        text: e.g. `mmlu:data/mmlu,shots=0`.
        base: a folder.
    """
    kind, colon, rest = text.partition(":")
    path, *options = _OPTION.split(rest)
    if not colon or kind == "lm_eval" or not path:
        return text
    return ",".join([f"{kind}:{base.absolute() / Path(path).expanduser()}", *options])


def written_out(value: Any) -> Any:
    """A task as a mapping, of what may be written shorter.

    Raises:
        ValueError: an option has no value.
    """
    if not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":")
    path, *options = _OPTION.split(rest)
    found: dict[str, Any] = {"type": kind}
    if colon and "=" in path and path.split("=")[0].isidentifier() and not Path(path).exists():
        options, path = [path, *options], ""
    if path:
        found["task" if kind == "lm_eval" else "path"] = path
    for option in options:
        name, _, text = option.partition("=")
        try:
            found[name] = text if name in ("pattern", "python", "criteria", "system") else yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"`{option}` is not an option: its value cannot be read") from None
    return found


def _all_written_out(value: Any) -> Any:
    if isinstance(value, str | dict):
        value = [value]
    return tuple(written_out(each) for each in value) if isinstance(value, list | tuple) else value


def _told_apart(tasks: tuple[Examination, ...]) -> tuple[Examination, ...]:
    titles = [task.title() for task in tasks]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ValueError(f"two tasks are called `{twice}`: give them a `name`")
    return tasks


Tasks = Annotated[
    tuple[Annotated[Alone, Field(discriminator="type")], ...], BeforeValidator(_all_written_out), AfterValidator(_told_apart)
]
"""Any number of tasks for one model, in short or in full."""
AllTasks = Annotated[tuple[Task, ...], BeforeValidator(_all_written_out), AfterValidator(_told_apart)]
"""The same, those that compare two models included."""
