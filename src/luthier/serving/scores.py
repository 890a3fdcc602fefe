"""`POST /v1/score` for reward models, `POST /v1/classify` for classifiers. Neither is OpenAI's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from luthier.models.scoring import Classifier, RewardModel
from luthier.serving.errors import Refused, answer
from luthier.serving.schema import ClassifyRequest, ScoreRequest
from luthier.serving.service import Service, conversation_of

T = TypeVar("T")
TOGETHER = 64
"""Texts that are scored between two looks at whether the client is still there."""


def score_routes(service: Service) -> APIRouter:
    """The endpoints."""
    router = APIRouter()

    @router.post("/v1/score", summary="What answers are worth")
    async def score(body: ScoreRequest, request: HttpRequest) -> Response:
        model = service.models.find(body.model).model
        if not isinstance(model, RewardModel):
            raise Refused(400, f"`{body.model}` is no reward model", param="model")
        conversations = [conversation_of(messages) for messages in body.conversations]
        for place, messages in enumerate(conversations):
            if messages[-1]["role"] != "assistant":
                raise Refused(400, "the last message is to be the assistant's, which is judged", param=f"conversations.{place}")

        values = await service.unless_gone(request, _in_parts(service, model.score, conversations))
        data = [{"object": "score", "index": index, "score": value} for index, value in enumerate(values)]
        return answer({"object": "list", "data": data, "model": body.model})

    @router.post("/v1/classify", summary="What kind of texts they are")
    async def classify(body: ClassifyRequest, request: HttpRequest) -> Response:
        model = service.models.find(body.model).model
        if not isinstance(model, Classifier):
            raise Refused(400, f"`{body.model}` is no classifier", param="model")
        texts = [body.input] if isinstance(body.input, str) else body.input
        if empty := [place for place, text in enumerate(texts) if not text.strip()]:
            raise Refused(400, "a text is empty", param=f"input.{empty[0]}")

        said = await service.unless_gone(request, _in_parts(service, model.predict, texts))
        data = [
            {"object": "classification", "index": index, "label": each.label, "scores": each.scores}
            for index, each in enumerate(said)
        ]
        return answer({"object": "list", "data": data, "model": body.model})

    return router


async def _in_parts(service: Service, function: Callable[[Sequence[Any]], Sequence[T]], items: Sequence[Any]) -> list[T]:
    """What a function of the model says of each item, some of them at a time, on the thread that owns the model."""
    found: list[T] = []
    for begin in range(0, len(items), TOGETHER):
        found += await service.front.call(partial(function, items[begin : begin + TOGETHER]))
    return found
