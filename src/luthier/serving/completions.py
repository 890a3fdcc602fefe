"""`POST /v1/completions`: texts or token ids in, what follows them out. No template, no functions, no forms."""

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

from luthier.generation.chat import ChatModel
from luthier.generation.choice import TokenLogprob
from luthier.generation.decode import Answer, Request
from luthier.generation.sampling import Decoding
from luthier.serving.chat import usage
from luthier.serving.errors import Refused
from luthier.serving.front import Flow
from luthier.serving.logprobs import of_completion
from luthier.serving.schema import CompletionRequest, sampled
from luthier.serving.served import Served
from luthier.serving.service import Service, defaults_of, seed_of
from luthier.serving.stream import respond


@dataclass(frozen=True, slots=True)
class Asked:
    """A request understood.

    Args:
        served: who answers.
        prompts: token ids of each.
        settings: how to answer.
        echoes: text that stands before each answer.
        usage: whether a stream ends with the number of tokens.
        choices: answers to each prompt.
    """

    served: Served
    prompts: list[list[int]]
    settings: Decoding
    echoes: list[str]
    usage: bool
    choices: int

    def requests(self) -> list[Request]:
        """Those of a prompt next to each other."""
        return [
            Request(prompt, self.settings, index, self.served.adapter) for prompt in self.prompts for index in range(self.choices)
        ]

    @property
    def read(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    def scored(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        """The `logprobs` of a choice."""
        if self.settings.logprobs is None:
            return None
        return of_completion(logprobs, self.served.chat.tokenizer, self.settings.stop_ids, offset)


def completion_routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/completions", summary="What follows a text")
    async def complete(body: CompletionRequest, request: HttpRequest) -> Response:
        served = service.models.find(body.model)
        served.chat  # noqa: B018 - refuses a model that writes nothing before anything is done
        asked = await service.prepare(lambda: understood(service, served, body))
        chunks = partial(_chunks, asked) if body.stream else None
        return await respond(service, request, asked.requests(), asked.read, chunks, partial(_whole, asked))

    return router


def understood(service: Service, served: Served, body: CompletionRequest) -> Asked:
    """The prompts and the settings of a request.

    Raises:
        Refused: it asks for what cannot be done.
    """
    chat, choices = served.chat, body.n or 1
    if body.best_of not in (None, choices):
        raise Refused(400, "`best_of` other than `n` is not offered", param="best_of")
    limit = service.tokens(body.max_tokens or 16)
    more = {"max_new_tokens": limit, "seed": seed_of(body), "logprobs": body.logprobs, "stop_strings": body.stops}
    settings = Decoding(stop_ids=chat.stop_ids(), **sampled(body, defaults_of(chat), **more))
    prompts = token_rows(chat, body.prompt)
    echoes = [chat.tokenizer.decode(prompt) if body.echo else "" for prompt in prompts]
    return Asked(served, prompts, settings, echoes, body.usage_at_end, choices)


def token_rows(chat: ChatModel, given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each text, with what the tokenizer puts around a text; token ids as they are.

    Raises:
        Refused: a text without tokens.
    """
    items: Sequence[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    before, behind = chat.tokenizer.around
    rows = [
        [*before, *chat.tokenizer.encode(item).ids.tolist(), *behind] if isinstance(item, str) else [*map(int, item)]
        for item in items
    ]
    if any(not row for row in rows):
        raise Refused(400, "a text is empty", param="prompt")
    return rows


def _head(asked: Asked) -> dict[str, Any]:
    made = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    return {**made, "model": asked.served.name}


def _whole(asked: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    choices = []
    for index, said in enumerate(answers):
        echo = asked.echoes[index // asked.choices]
        scored = asked.scored(said.logprobs, len(echo))
        choices.append({"index": index, "text": echo + said.text, "logprobs": scored, "finish_reason": said.reason})
    return {**_head(asked), "choices": choices, "usage": usage(asked.read, answers)}


async def _chunks(asked: Asked, flow: Flow) -> AsyncIterator[dict[str, Any]]:
    head = _head(asked)
    told = [0] * len(flow.jobs)
    begun: set[int] = set()
    async for index, piece in flow.pieces():
        text = piece.text
        if index not in begun:
            begun.add(index)
            text = asked.echoes[index // asked.choices] + text
        reason = piece.answer.reason if piece.answer is not None else None
        scored = asked.scored(piece.logprobs, told[index])
        told[index] += len(text)
        if text or reason or scored:
            choice = {"index": index, "text": text, "logprobs": scored, "finish_reason": reason}
            yield {**head, "choices": [choice], **({"usage": None} if asked.usage else {})}
    if asked.usage:
        yield {**head, "choices": [], "usage": usage(asked.read, flow.answers)}
