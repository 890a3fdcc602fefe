"""What all endpoints share: the models, the way to the worker, and the thread on which prompts are made."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from luthier.generation.chat import ChatModel
from luthier.serving.errors import Refused
from luthier.serving.front import Front
from luthier.serving.limits import Limits
from luthier.serving.metrics import Metrics
from luthier.serving.schema import Message, Sampling
from luthier.serving.served import Models

T = TypeVar("T")


@dataclass(slots=True)
class Service:
    """One server's state.

    Args:
        models: by name.
        front: to the worker.
        limits: what is granted.
        metrics: what is counted.
        pooling: how states become an embedding where a request does not say.

    Attributes:
        prompts: renders and tokenises, one conversation at a time: a template is foreign code that may take seconds, and the event
            loop must not wait for it.
    """

    models: Models
    front: Front
    limits: Limits
    metrics: Metrics
    pooling: str = "mean"
    prompts: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prompts"))

    async def prepare(self, function: Callable[[], T]) -> T:
        """Call a function on the thread for prompts."""
        return await asyncio.get_running_loop().run_in_executor(self.prompts, function)

    async def unless_gone(self, request: HttpRequest, work: Awaitable[T]) -> T:
        """What `work` gives, or an end to it as soon as the client is gone."""
        return await unless_gone(request.receive, work, self.metrics)

    def tokens(self, asked: int | None, param: str = "max_tokens") -> int:
        """How long an answer may become.

        Raises:
            Refused: longer than this server allows.
        """
        if asked is not None and asked > self.limits.max_tokens:
            message = f"{asked} tokens are too many: this server writes at most {self.limits.max_tokens} (--max-tokens)"
            raise Refused(400, message, param=param)
        return asked or self.limits.max_tokens


class Gone(Exception):
    """The client went away; nobody is left to be told."""


async def unless_gone(receive: Receive, work: Awaitable[T], metrics: Metrics) -> T:
    """What `work` gives.

    Raises:
        Gone: the client closed its connection before; `work` is cancelled.
    """
    gone, working = asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        metrics.gone.inc()
        raise Gone
    finally:
        for task in (gone, working):
            task.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def seed_of(body: Sampling) -> int:
    """The seed that a request names, else chance."""
    return body.seed if body.seed is not None else secrets.randbits(63)


def defaults_of(chat: ChatModel) -> dict[str, Any]:
    """How a model samples where a request does not say: as its own `generation_config` has it, else plainly, at temperature 1."""
    config = chat.model.generation_config
    own = {name: getattr(config, name, None) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    return {"temperature": 1.0, **{name: value for name, value in own.items() if value is not None}}


def conversation_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as in training: text in one piece, `developer` as `system`, the arguments of calls as mappings, results with their names."""
    found: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        role = "system" if message.role == "developer" else message.role
        content = message.content or ""
        made: dict[str, Any] = {
            "role": role,
            "content": content if isinstance(content, str) else "".join(p.text for p in content),
        }
        if message.content is None and not message.tool_calls:
            raise Refused(400, f"{where}: the content is missing", param=f"{where}.content")
        if message.tool_calls:
            if role != "assistant":
                raise Refused(400, f"{where}: only the assistant calls functions", param=f"{where}.tool_calls")
            made["tool_calls"] = [_call(call.model_dump(), f"{where}.tool_calls") for call in message.tool_calls]
            names |= {call.id: call.function.name for call in message.tool_calls}
        if message.tool_call_id is not None:
            made["tool_call_id"] = message.tool_call_id
        name = message.name or names.get(message.tool_call_id or "")
        extra = {"name": name, "reasoning_content": message.reasoning_content}
        found.append({**made, **{key: value for key, value in extra.items() if value is not None}})
    return found


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call whose arguments are a mapping, as templates expect it."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError:
        raise Refused(400, f"{where}: the arguments are not valid JSON", param=where) from None
    return {**call, "function": {"name": call["function"]["name"], "arguments": arguments}}
