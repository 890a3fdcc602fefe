"""The models of a server by name: the one that it was started with, and its adapters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import UserError
from luthier.generation.chat import ChatModel
from luthier.models.scoring import Classifier, RewardModel
from luthier.serving.errors import Refused


@dataclass(frozen=True, slots=True)
class Served:
    """A model under a name.

    Args:
        name: by which clients ask for it.
        model: the model, with the template of the adapter if it brings one.
        adapter: the adapter's name in the decoder, None for the model itself.
        root: where it comes from.
        parent: name of the model that the adapter is on.
    """

    name: str
    model: ChatModel | RewardModel | Classifier
    adapter: str | None = None
    root: str = ""
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def card(self) -> dict[str, Any]:
        """As `GET /v1/models` tells it, `root` and `parent` as vLLM does."""
        named = {"id": self.name, "object": "model", "created": self.created, "owned_by": "luthier"}
        return {**named, "root": self.root or self.name, "parent": self.parent}

    @property
    def chat(self) -> ChatModel:
        """The model, which has to be one that writes.

        Raises:
            Refused: it scores texts.
        """
        if not isinstance(self.model, ChatModel):
            where = "/v1/score" if isinstance(self.model, RewardModel) else "/v1/classify"
            raise Refused(400, f"`{self.name}` scores texts and writes none; ask {where}", param="model")
        return self.model


class Models:
    """All of them, the first one first."""

    def __init__(self) -> None:
        self._by_name: dict[str, Served] = {}

    def __iter__(self) -> Iterator[Served]:
        """In the order in which they came."""
        return iter(tuple(self._by_name.values()))

    def find(self, name: str) -> Served:
        """The model of a name.

        Raises:
            Refused: there is none.
        """
        if name not in self._by_name:
            raise Refused(404, f"the model `{name}` does not exist", param="model", code="model_not_found")
        return self._by_name[name]

    def add(self, served: Served) -> None:
        """Another model.

        Raises:
            UserError: the name is taken.
        """
        self.check_free(served.name)
        self._by_name[served.name] = served

    def check_free(self, name: str) -> None:
        """Refuse a name that is taken.

        Raises:
            UserError: it is.
        """
        if name in self._by_name:
            raise UserError(f"there is a model `{name}` already", hint="Choose another name.")

    def remove(self, name: str) -> None:
        """Forget a model."""
        self._by_name.pop(name, None)
