"""A chat model whose adapters change between two answers: what one talks to in a terminal.

The base stays in memory. An adapter that can stand beside its layers (`adapters.py`) is read once, and from then on putting it
on or taking it off costs nothing; one that cannot is part of the model for good. What was read of the conversation is kept for
each adapter (`prefix.py`), so a turn reads only what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.chat import ChatTemplate
from luthier.errors import UserError
from luthier.generation.adapters import Adapters
from luthier.generation.chat import ChatModel
from luthier.generation.decode import Decoder
from luthier.generation.prefix import Prefixes
from luthier.generation.request import Piece, Request


class Speaker:
    """Answers the conversations of one person, by the base or by an adapter.

    Args:
        chat: the model.
        base: what it was loaded from, to tell adapters of another one.
        fixed: the model carries an adapter that cannot be taken off.

    Attributes:
        chat: the model, with the template of the adapter that answers.
        base: as given.
        adapter: name of the adapter that answers; None is the model itself.
    """

    def __init__(self, chat: ChatModel, *, base: str = "", fixed: bool = False) -> None:
        self.chat, self.base, self.adapter = chat, base, None if not fixed else chat.name
        self._bare = chat
        self._adapters = None if fixed else Adapters(chat.model)
        self._worn: dict[str, ChatModel] = {}
        self._folders: dict[str, Path] = {}
        self._prefixes = Prefixes()

    @property
    def name(self) -> str:
        """What answers."""
        return self.chat.name

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that were read."""
        return tuple(self._worn)

    def use(self, name: str, folder: Path | None = None, template: ChatTemplate | None = None) -> None:
        """Answer by an adapter from now on.

        Args:
            name: of one that was read before, or what to call it.
            folder: where to read it; None where it was read.
            template: the one that it learnt with, where that is not the base's.

        Raises:
            UserError: no such adapter, one of another base, or the model carries one that cannot be taken off.
        """
        if self._adapters is None:
            raise self._fixed()
        if folder is not None and name not in self._worn:
            self._adapters.load(name, folder)
            model, tokenizer = self._bare.model, self._bare.tokenizer
            self._worn[name] = ChatModel(model, tokenizer, template or self._bare.template, name=name)
            self._folders[name] = folder.resolve()
        self.adapter = self._adapters.find(name).name
        self.chat = self._worn[name]

    def named(self, folder: Path) -> str | None:
        """What the adapter of a folder is called, if it was read."""
        return next((name for name, known in self._folders.items() if known == folder.resolve()), None)

    def bare(self) -> None:
        """Answer by the model itself from now on.

        Raises:
            UserError: it carries an adapter that cannot be taken off.
        """
        if self._adapters is None:
            raise self._fixed()
        self.adapter, self.chat = None, self._bare

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        **decoding: Any,
    ) -> Iterator[Piece]:
        """The answer to the last message, as it is written; the last piece holds the whole of it. Arguments are `ChatModel.chat`'s.

        Raises:
            UserError: as `ChatModel.chat`, before anything is written.
        """
        prompt = self.chat.prompt(messages, system=system, tools=tools, thinking=thinking)
        turn = sum(message["role"] == "assistant" for message in messages)
        decoder = Decoder(self.chat.model, self.chat.tokenizer, slots=1, adapters=self._adapters, prefixes=self._prefixes)
        worn = self.adapter if self._adapters else None
        decoder.submit(Request(prompt, self.chat.decoding(**decoding), index=turn, adapter=worn))
        return decoder.run()

    def may_think(self) -> bool:
        """Whether the template leaves it to its user that the model thinks first."""
        asked = [{"role": "user", "content": "?"}]
        return self.chat.prompt(asked, thinking=True) != self.chat.prompt(asked, thinking=False)

    def _fixed(self) -> UserError:
        return UserError(
            f"`{self._bare.name}` is an adapter that cannot be taken off while it runs",
            hint="Start with the base to change adapters.",
        )
