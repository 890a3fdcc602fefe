"""The requests, as OpenAI has them: what may be asked, and within which bounds.

A field that is not here is refused by name, because an answer that silently ignores a wish is a wrong answer. Fields of OpenAI's that say
nothing about the answer (`user`, `metadata` and the like) are taken and left alone. `top_k`, `min_p`, `repetition_penalty` and
`chat_template_kwargs` (such as `{"enable_thinking": false}`) are vLLM's; OpenAI's client sends them by `extra_body`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from luthier.generation.sampling import Decoding

STOPS, CHOICES, TOOLS, TEXTS = 16, 128, 128, 2048
"""Most stop strings, answers to a prompt, functions, and texts in one request."""
SEED = 2**63
TAKEN = frozenset({"messages", "tools", "documents", "system", "now", "add_generation_prompt"})
"""Names in a template that `chat_template_kwargs` cannot set."""


def _sayable(value: dict[str, Any]) -> dict[str, Any]:
    """Free JSON that can be written as UTF-8."""
    try:
        _encodable(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no character") from None


def _free_names(value: dict[str, Any]) -> dict[str, Any]:
    """Further names for a template."""
    if taken := sorted(TAKEN & value.keys()):
        raise ValueError(f"`{taken[0]}` is given by the request itself")
    return value


Json = Annotated[dict[str, Any], AfterValidator(_sayable)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=STOPS)]


class Body(BaseModel):
    """A part of a request, closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _characters(cls, value: Any) -> Any:
        """Refuse texts with half of a surrogate pair, which JSON can write and UTF-8 cannot."""
        for field in value.values() if isinstance(value, dict) else ():
            for text in field if isinstance(field, list) else (field,):
                if isinstance(text, str) and not text.isascii():
                    _encodable(text)
        return value


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """Name and arguments of a call, the arguments as JSON in a text."""

    name: Name
    arguments: str


class ToolCall(Body):
    """A call of a function that the model made before."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Body):
    """A function in its wrapping."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: Name


class NamedTool(Body):
    """A function that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class PlainFormat(Body):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class Schema(Body):
    """A JSON schema."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, serialize_by_alias=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    content: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


class StreamOptions(Body):
    """What a stream tells besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(Body):
    """How to answer: shared by chats and completions."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES)] | None = None
    stop: str | Stops | None = None
    seed: Annotated[int, Field(ge=-SEED, lt=SEED)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=TEXTS)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: PlainFormat | SchemaFormat | None = None
    chat_template_kwargs: Annotated[Json, AfterValidator(_free_names)] | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str] | list[Token] | list[list[Token]], Field(min_length=1, max_length=1 << 20)]
    best_of: Annotated[int, Field(ge=1, le=CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: None = None


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`. `pooling` is not OpenAI's: how the states of a text become one vector."""

    model: Name
    input: str | Annotated[list[str] | list[Token] | list[list[Token]], Field(min_length=1, max_length=1 << 20)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None


class ScoreRequest(Body):
    """`POST /v1/score`: conversations, each ending with the answer that is judged."""

    model: Name
    conversations: Annotated[list[Annotated[list[Message], Field(min_length=1)]], Field(min_length=1, max_length=TEXTS)]


class ClassifyRequest(Body):
    """`POST /v1/classify`."""

    model: Name
    input: str | Annotated[list[str], Field(min_length=1, max_length=TEXTS)]


class LoadAdapter(Body):
    """`POST /v1/load_lora_adapter`, as vLLM has it."""

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapter(Body):
    """`POST /v1/unload_lora_adapter`, as vLLM has it."""

    lora_name: Name


def sampled(body: Sampling, model_defaults: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The fields of `Decoding` that a request sets, and those that the model has by default.

    Args:
        body: the request.
        model_defaults: what the model's own settings say.
        **more: further fields.
    """
    named = ("temperature", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    settings = {**model_defaults, **{name: value for name in named if (value := getattr(body, name)) is not None}, **more}
    if body.top_p is not None:
        settings["top_p"] = max(body.top_p, 1e-6)  # OpenAI allows 0: the most likely token alone
    if body.top_k is not None:
        settings["top_k"] = max(body.top_k, 0)  # vLLM's -1: all
    if body.logit_bias:
        settings["logit_bias"] = tuple(sorted((int(token), bias) for token, bias in body.logit_bias.items()))
    unknown = sorted(set(settings) - set(Decoding.__dataclass_fields__))
    assert not unknown, unknown
    return {name: value for name, value in settings.items() if value is not None}
