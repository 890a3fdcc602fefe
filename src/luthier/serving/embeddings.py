"""`POST /v1/embeddings`: texts as vectors of length 1, from the last hidden states h_t of a language model.

    mean   Σ_t h_t / T      what the whole text is about; the default
    last   h_T              for models that were trained to put a text's meaning into its last token

A language model that was not trained for it gives vectors that tell texts apart, but not as well as a model made for search.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import torch
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor

from luthier.errors import UserError
from luthier.generation.chat import ChatModel
from luthier.generation.decode import context_length
from luthier.models.head import decoder
from luthier.serving.adapters import AdapterShelf
from luthier.serving.completions import token_rows
from luthier.serving.errors import Refused, answer
from luthier.serving.schema import TEXTS, EmbeddingRequest
from luthier.serving.service import Service

Pooling = Literal["mean", "last"]
TOGETHER = 8192
"""Most tokens, padding included, that are read in one pass; between two passes the answers under way go on."""


def embedding_routes(service: Service, shelf: AdapterShelf) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/embeddings", summary="Texts as vectors")
    async def embed(body: EmbeddingRequest, request: HttpRequest) -> Response:
        served = service.models.find(body.model)
        chat, pooling = served.chat, body.pooling or service.pooling
        rows = await service.prepare(lambda: checked(chat, body))

        def read(some: list[list[int]]) -> Tensor:
            with shelf.answering(served, len(some)):
                return pooled(chat, some, pooling)

        async def computed() -> list[list[float]]:
            found: dict[int, list[float]] = {}
            for places in passes(rows):
                some = [rows[place] for place in places]
                vectors = await service.front.call(lambda some=some: read(some))  # type: ignore[misc]
                found |= dict(zip(places, vectors.tolist(), strict=True))
            return [found[place] for place in range(len(rows))]

        vectors = await service.unless_gone(request, computed())
        tokens = sum(map(len, rows))
        service.metrics.prompt.inc(tokens)
        coded = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _coded(vector) if coded else vector}
            for index, vector in enumerate(vectors)
        ]
        told = {"prompt_tokens": tokens, "total_tokens": tokens}
        return answer({"object": "list", "data": data, "model": served.name, "usage": told})

    return router


def checked(chat: ChatModel, body: EmbeddingRequest) -> list[list[int]]:
    """Token ids of each text.

    Raises:
        Refused: too many texts, one without tokens or beyond the context, or another size than the model's.
    """
    rows, context = token_rows(chat, body.input), context_length(chat.model)
    if len(rows) > TEXTS:
        raise Refused(400, f"{len(rows)} texts are more than {TEXTS}", param="input")
    width = chat.model.config.get_text_config().hidden_size
    if body.dimensions not in (None, width):
        raise Refused(400, f"the vectors of this model have {width} dimensions", param="dimensions")
    if context and (longest := max(map(len, rows))) > context:
        raise UserError(f"a text has {longest} tokens, the model's context is {context}", where="input")
    vocabulary = chat.model.get_input_embeddings().weight.shape[0]
    if max(max(row) for row in rows) >= vocabulary:
        raise Refused(400, f"a token is beyond the model's {vocabulary}", param="input")
    return rows


def passes(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of the rows that are read together: of like length, so that little is padded."""
    found: list[list[int]] = []
    for place in sorted(range(len(rows)), key=lambda place: len(rows[place])):
        if found and (len(found[-1]) + 1) * len(rows[place]) <= TOGETHER:
            found[-1].append(place)
        else:
            found.append([place])
    return found


@torch.no_grad()
def pooled(chat: ChatModel, rows: Sequence[Sequence[int]], pooling: str) -> Tensor:
    """Vectors of length 1 of token sequences, float32 [N, H] on the CPU. Rows are padded behind, where a causal model does not look."""
    device, longest = chat.model.device, max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    real = torch.arange(longest, device=device) < lengths[:, None]
    states = decoder(chat.model)(input_ids=tokens, attention_mask=real.long(), use_cache=False).last_hidden_state.float()
    if pooling == "last":
        vectors = states[torch.arange(len(rows), device=device), lengths - 1]
    else:
        vectors = (states * real[..., None]).sum(1) / lengths[:, None]
    return torch.nn.functional.normalize(vectors, dim=-1).cpu()


def _coded(vector: Sequence[float]) -> str:
    """Little-endian float32 in base 64, which OpenAI's client asks for by itself."""
    return base64.b64encode(torch.tensor(vector).numpy().astype("<f4").tobytes()).decode()
