"""What an answer is worth: the rewards that reinforcement stages add up.

A stage takes them as `rewards: Rewards`. Each is the name of a reward or a mapping with `type` and options; `{python: file.py:function}`
needs no `type`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from luthier.recipe.sections.base import Positive, Section

Seconds = Annotated[float, Field(gt=0, le=3600)]
Workers = Annotated[int, Field(gt=0, le=256)]


class Weighted(Section):
    """What all rewards have in common."""

    name: str = ""
    """What it is called in reports. Default: its type."""
    weight: float = 1.0
    """Factor in the sum of all rewards; below 0 it is a penalty."""
    on_bad: Literal["zero", "skip", "stop"] = "skip"
    """When it fails or gives no number: count it as 0, take no gradient from that answer, or stop the run."""

    def title(self) -> str:
        """What it is called in reports."""
        return self.name or str(getattr(self, "type", ""))


class ExactMatch(Weighted):
    """1 if the answer is the prompt's reference, else 0."""

    type: Literal["exact_match"] = "exact_match"
    extract: tuple[Literal["whole", "marked", "boxed", "number"], ...] = ("whole",)
    """What of the answer counts, the first that is there: all of it, what follows `####`, what `\\boxed{}` holds, or the last number."""
    pattern: str = ""
    """In place of `extract`: a regular expression. Its last match counts, of that the first group if it has one."""
    ignore: tuple[Literal["case", "spaces", "punctuation", "width"], ...] = ("case", "spaces", "width")
    """Differences that do not count; `width` is that of full-width letters and digits."""
    numbers: bool = True
    """Compare by value where both are numbers: `1,000`, `1000.0`, `$1000` and `一千` are the same."""

    @field_validator("extract", "ignore", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        return _expression(value, "pattern")


class MathVerify(Weighted):
    """1 if the answer equals the reference as mathematics, by math-verify, else 0."""

    type: Literal["math_verify"] = "math_verify"
    timeout: Seconds = 10
    """Seconds for one comparison; after them the reward is bad."""


class FormatRegex(Weighted):
    """1 if the answer has a form that a regular expression describes, else 0."""

    type: Literal["format_regex"] = "format_regex"
    pattern: str
    """The expression; `.` also stands for a line break. E.g. `<think>.*</think>.+`."""
    match: Literal["whole", "anywhere"] = "whole"
    """Whether the whole answer has to fit, without the space around it, or a part of it."""

    @field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        return _expression(value, "pattern")


class Length(Weighted):
    """The length of the answer against a target, or a penalty for answers that are too long."""

    type: Literal["length"] = "length"
    shape: Literal["range", "overlong"] = "range"
    """`range`: 1 from `min` to `max`, falling to 0 outside. `overlong` (DAPO): 0, falling to -1 before `max`."""
    min: Annotated[int, Field(ge=0)] = 0
    """Shortest length that earns the whole reward."""
    max: Positive | None = None
    """Longest length that earns the whole reward; of `overlong` the length from which on it is -1."""
    margin: Annotated[int, Field(ge=0)] = 0
    """Over how much length the reward falls, in a straight line: outside of the range, or before `max`."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What is counted."""

    @model_validator(mode="after")
    def _bounded(self) -> Length:
        if self.max is not None and self.max < self.min:
            raise ValueError("`min` of a length should be at most `max`")
        if self.shape == "range" and self.max is None and not self.min:
            raise ValueError("a length needs `min` or `max`")
        if self.shape == "overlong" and (self.max is None or self.margin > self.max or self.min):
            raise ValueError("`shape: overlong` needs `max`, a `margin` of at most `max`, and no `min`")
        return self


class JsonSchema(Weighted):
    """1 if the answer is JSON that fits a schema, else 0. By jsonschema."""

    type: Literal["json_schema"] = "json_schema"
    file: str = ""
    """A JSON file with the schema, relative to the recipe's folder. Default: `inline`, else each prompt's reference is its schema."""
    inline: dict[str, Any] = {}
    """The schema itself."""
    parsed: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What an answer earns that is JSON but does not fit."""

    @model_validator(mode="after")
    def _given_once(self) -> JsonSchema:
        if self.file and self.inline:
            raise ValueError("give `file` or `inline`, not both")
        return self


class Code(Weighted):
    """Runs the Python code of the answer against the reference's tests, in a process of its own with limits."""

    type: Literal["code"] = "code"
    score: Literal["all", "share"] = "all"
    """1 if all tests pass, else 0; or the share of tests that pass."""
    timeout: Seconds = 10
    """Seconds for all tests of one answer together."""
    memory_mb: Annotated[int, Field(ge=64, le=65536)] = 512
    """Most memory that a test may take."""
    packages: bool = False
    """Let answers import the packages of this environment, such as numpy; else the standard library alone."""
    workers: Workers | None = None
    """Answers that are tested at the same time. Default: one for each processor."""
    isolation: Literal["full", "limits"] = "full"
    """`full`: the kernel shuts off network, processes and foreign files (Linux 5.13), else the run stops. `limits`: time and memory."""


class OwnCode(Weighted):
    """A function of your own. It is called with a list of answers and returns a list of numbers."""

    type: Literal["python"] = "python"
    python: str
    """Where it is: `file.py:function`, relative to the recipe's folder."""


class Http(Weighted):
    """Asks a server: a POST with answers as JSON, which gives back a list of numbers."""

    type: Literal["http"] = "http"
    url: str
    """Its address, `https://…` or `http://…`. Redirects are not followed."""
    allow_private: bool = False
    """Also ask addresses of this machine and of private networks."""
    token_env: str = ""
    """Name of an environment variable whose value is sent as bearer token."""
    batch_size: Positive = 16
    """Most answers in one request."""
    timeout: Seconds = 30
    """Seconds for one request."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a request is tried again that got no answer, or status 429 or 5xx; each wait is twice as long as the one before."""
    workers: Workers = 4
    """Requests at the same time."""


class RewardModel(Weighted):
    """What a trained reward model says of the answer."""

    type: Literal["model"] = "model"
    path: str
    """A run of stage `rm` (name or folder), a sequence-classification folder of transformers, a PEFT adapter, or a hub id."""
    checkpoint: Positive | None = None
    """Of a run, the step whose weights to take. Default: the final ones."""


Reward = Annotated[
    ExactMatch | MathVerify | FormatRegex | Length | JsonSchema | Code | OwnCode | Http | RewardModel, Field(discriminator="type")
]


def _written_out(value: Any) -> Any:
    """A list of mappings with `type`, of what may be written shorter."""
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return tuple(_with_type(each) for each in value)


def _with_type(value: Any) -> Any:
    if isinstance(value, str):
        return {"type": value}
    return {"type": "python", **value} if isinstance(value, dict) and "python" in value else value


def _told_apart(rewards: tuple[Weighted, ...]) -> tuple[Weighted, ...]:
    titles = [reward.title() for reward in rewards]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ValueError(f"two rewards are called `{twice}`: give them a `name`")
    return rewards


Rewards = Annotated[tuple[Reward, ...], Field(min_length=1), BeforeValidator(_written_out), AfterValidator(_told_apart)]
"""One reward or several, in short or in full."""


def _expression(value: str, field: str) -> str:
    """The value, if it is a regular expression.

    Raises:
        ValueError: it is none.
    """
    import regex

    try:
        regex.compile(value)
    except regex.error as error:
        raise ValueError(f"`{field}` is not a regular expression: {error}") from None
    return value
