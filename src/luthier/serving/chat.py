"""`POST /v1/chat/completions`: a conversation in, its next message out, whole or as a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from luthier.chat.tools import Call
from luthier.generation.decode import Answer, Piece, Request
from luthier.generation.sampling import Decoding
from luthier.serving.apart import THINK, Apart, Reading, call_message
from luthier.serving.forcing import form_of, must_call, offered, opening
from luthier.serving.front import Flow
from luthier.serving.logprobs import of_chat
from luthier.serving.schema import ChatRequest, sampled
from luthier.serving.served import Served
from luthier.serving.service import Service, conversation_of, defaults_of, seed_of
from luthier.serving.stream import respond
from luthier.version import __version__


@dataclass(frozen=True, slots=True)
class Asked:
    """A request understood.

    Args:
        served: who answers.
        prompt: token ids.
        settings: how to answer.
        reading: how the answer is read.
        usage: whether a stream ends with the number of tokens.
        choices: answers to the prompt.
    """

    served: Served
    prompt: list[int]
    settings: Decoding
    reading: Reading
    usage: bool
    choices: int

    def requests(self) -> list[Request]:
        """One for each answer."""
        return [Request(self.prompt, self.settings, index, self.served.adapter) for index in range(self.choices)]


def chat_routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="The next message of a conversation")
    async def chat(body: ChatRequest, request: HttpRequest) -> Response:
        served = service.models.find(body.model)
        served.chat  # noqa: B018 - refuses a model that writes nothing before anything is done
        asked = await service.prepare(lambda: understood(service, served, body))
        chunks = partial(_chunks, asked) if body.stream else None
        return await respond(service, request, asked.requests(), len(asked.prompt), chunks, partial(_whole, asked))

    return router


def understood(service: Service, served: Served, body: ChatRequest) -> Asked:
    """The prompt and the settings of a request.

    Raises:
        Refused: it asks for what cannot be done.
        UserError: the template refuses the conversation.
    """
    chat, tools = served.chat, offered(body)
    schemas = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools] or None
    prompt = chat.prompt(conversation_of(body.messages), tools=schemas, **(body.chat_template_kwargs or {}))
    if must_call(body):
        prompt += chat.tokenizer.encode(opening(chat.template)).ids.tolist()
    limit = service.tokens(body.max_completion_tokens or body.max_tokens)
    told = (body.top_logprobs or 0) if body.logprobs else None
    more = {"max_new_tokens": limit, "seed": seed_of(body), "logprobs": told, "stop_strings": body.stops}
    form = form_of(body, tools, chat.template)
    settings = chat.decoding(**sampled(body, defaults_of(chat), constraint=form, **more))
    reading = Reading(
        chat.template,
        chat.tokenizer,
        settings.stop_strings,
        schemas,
        forced=must_call(body),
        single=body.parallel_tool_calls is False,
        thinks=chat.tokenizer.decode(prompt[-8:], skip_special=False).rstrip().endswith(THINK),
    )
    return Asked(served, prompt, settings, reading, body.usage_at_end, body.n or 1)


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    fingerprint = f"luthier-{__version__}"
    made = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": asked.served.name}
    return {**made, "system_fingerprint": fingerprint}


def usage(prompts: int, answers: Sequence[Answer | None]) -> dict[str, int]:
    """The number of tokens."""
    written = sum(len(answer.tokens) for answer in answers if answer is not None)
    return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}


def _whole(asked: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    choices = [_choice(asked, index, said) for index, said in enumerate(answers)]
    return {**_head(asked, "chat.completion"), "choices": choices, "usage": usage(len(asked.prompt), answers)}


def _choice(asked: Asked, index: int, said: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    calls: list[Call] = []
    if not asked.reading.plain:
        apart = Apart(asked.reading)
        early = apart.push(_visible(asked, said.tokens))
        late, calls = apart.finish()
        fields: dict[str, str] = {}
        for name, text in [*early, *late]:
            fields[name] = fields.get(name, "") + text
        message |= {"content": None if calls else "", **fields}
        if calls:
            message["tool_calls"] = [call_message(call) for call in calls]
    scored = None
    if asked.settings.logprobs is not None:
        scored = {"content": of_chat(said.logprobs, asked.served.chat.tokenizer, asked.settings.stop_ids), "refusal": None}
    reason = "tool_calls" if calls else said.reason
    return {"index": index, "message": message, "logprobs": scored, "finish_reason": reason}


async def _chunks(asked: Asked, flow: Flow) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream: of each choice its role, its text bit by bit, its end; last of all the number of tokens."""
    head = _head(asked, "chat.completion.chunk")
    if asked.usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, Any], *, reason: str | None = None, scored: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": scored, "finish_reason": reason}
        return {**head, "choices": [choice]}

    aparts = [None if asked.reading.plain else Apart(asked.reading) for _ in flow.jobs]
    begun: set[int] = set()
    async for index, piece in flow.pieces():
        if index not in begun:
            begun.add(index)
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        parts, calls = _told(asked, aparts[index], piece)
        scored = None
        if asked.settings.logprobs is not None and piece.logprobs:
            told = of_chat(piece.logprobs, asked.served.chat.tokenizer, asked.settings.stop_ids)
            scored = {"content": told, "refusal": None} if told else None
            parts = parts or ([{"content": ""}] if told else [])
        for delta in parts:
            yield chunk(index, delta, scored=scored)
            scored = None
        if piece.answer is not None:
            yield chunk(index, {}, reason="tool_calls" if calls else piece.answer.reason)
    if asked.usage:
        yield {**head, "choices": [], "usage": usage(len(asked.prompt), flow.answers)}


def _told(asked: Asked, apart: Apart | None, piece: Piece) -> tuple[list[dict[str, Any]], bool]:
    """The deltas that a piece brings, and whether the answer has ended with calls."""
    if apart is None:
        return ([{"content": piece.text}] if piece.text else []), False
    parts = apart.push(_visible(asked, piece.tokens))
    calls: list[Call] = []
    if piece.answer is not None:
        late, calls = apart.finish()
        parts += late
    deltas: list[dict[str, Any]] = [{name: text} for name, text in parts]
    deltas += [{"tool_calls": [{"index": place, **call_message(call)}]} for place, call in enumerate(calls)]
    return deltas, bool(calls)


def _visible(asked: Asked, tokens: Sequence[int]) -> list[int]:
    return [token for token in tokens if token not in asked.settings.stop_ids]
