"""Adapters that come and go while the server runs, and answer side by side in one batch.

`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter` are vLLM's. They read files of the machine that the server runs on, so they
want the API key, and a folder within one of those that were allowed when the server was started, after links in its path are followed.
An adapter that was trained with a chat template of its own is asked with that template.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UserError
from luthier.generation.adapters import Adapters, Mix
from luthier.generation.chat import ChatModel
from luthier.models.adapters.format import is_adapter
from luthier.models.source import find_source, has_tokenizer, template_for
from luthier.serving.errors import Refused
from luthier.serving.schema import LoadAdapter, UnloadAdapter
from luthier.serving.served import Served
from luthier.serving.service import Service


@dataclass(frozen=True, slots=True)
class AdapterShelf:
    """The adapters of a server.

    Args:
        base: the model that they are on; None where there can be none.
        adapters: holds their weights; touched on the worker's thread alone.
        folders: within which adapters may be loaded while the server runs.
    """

    base: Served | None
    adapters: Adapters | None
    folders: Sequence[Path] = ()

    def load(self, name: str, folder: Path) -> Served:
        """Load an adapter; called on the worker's thread.

        Raises:
            UserError: it does not fit the model.
        """
        if self.base is None or self.adapters is None:
            raise UserError("this model takes no adapters", hint="Serve the plain base model.")
        chat = _with_template(self.base.chat, folder, name)
        self.adapters.load(name, folder)
        return Served(name, chat, adapter=name, root=str(folder), parent=self.base.name)

    def unload(self, name: str) -> None:
        """Forget an adapter; called on the worker's thread."""
        assert self.adapters is not None
        self.adapters.unload(name)

    @contextmanager
    def answering(self, served: Served, rows: int) -> Iterator[None]:
        """Forward passes inside are of so many rows with the adapter of a model, if it has one; on the worker's thread."""
        if self.adapters is None or served.adapter is None:
            yield
            return
        with self.adapters.answering(Mix([self.adapters.find(served.adapter)] * rows)):
            yield

    def allowed(self, path: str) -> Path:
        """The folder of a path, if it may be loaded.

        Raises:
            Refused: it lies elsewhere, or is no adapter.
        """
        folder = Path(path).resolve()
        if not any(folder.is_relative_to(home.resolve()) for home in self.folders):
            raise Refused(403, "adapters of this folder may not be loaded; allow it with --adapter-folder", param="lora_path")
        if not is_adapter(folder):
            raise Refused(400, "there is no adapter in this folder", param="lora_path")
        return folder


def adapter_routes(service: Service, shelf: AdapterShelf, *, keyed: bool) -> APIRouter:
    """The endpoints.

    Args:
        service: the server's state.
        shelf: the adapters.
        keyed: whether the server asks for an API key.
    """
    router, changing = APIRouter(), asyncio.Lock()

    def check() -> None:
        if not keyed or not shelf.folders:
            raise Refused(403, "adapters are loaded at run time with --api-key and --adapter-folder", code="not_allowed")

    @router.post("/v1/load_lora_adapter", summary="Load an adapter")
    async def load(body: LoadAdapter) -> Response:
        check()
        folder = shelf.allowed(body.lora_path)
        async with changing:
            service.models.check_free(body.lora_name)
            service.models.add(await service.front.call(lambda: shelf.load(body.lora_name, folder)))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", summary="Forget an adapter")
    async def unload(body: UnloadAdapter) -> Response:
        check()
        if service.models.find(body.lora_name).adapter is None:
            raise Refused(400, f"`{body.lora_name}` is no adapter", param="lora_name")
        async with changing:
            service.models.remove(body.lora_name)
            await service.front.call(lambda: shelf.unload(body.lora_name))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


def adapter_folder(text: str) -> tuple[str, Path]:
    """Name and folder of `name=path`, where the path may be the name of a run.

    Raises:
        UserError: it has no name, or there is no adapter.
    """
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise UserError(f"`{text}` is not `name=path`", where="--adapter", hint="Write `--adapter polite=runs/polite/final`.")
    folder = Path(path).expanduser()
    if not is_adapter(folder):
        found = find_source(path).adapter
        if found is None:
            raise UserError("this is no adapter", where=path, hint="Name the folder of an adapter, or a run that trained one.")
        folder = found
    return name, folder


def _with_template(base: ChatModel, folder: Path, name: str) -> ChatModel:
    """The model under an adapter's name, with the template in its folder if there is one.

    Raises:
        UserError: the adapter has other tokens than the model.
    """
    if not has_tokenizer(folder):
        return ChatModel(base.model, base.tokenizer, base.template, name=name)
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        return ChatModel(base.model, base.tokenizer, base.template, name=name)
    if tokenizer.vocab_size != base.tokenizer.vocab_size:
        raise UserError("this adapter has tokens of its own", where=str(folder), hint="Merge it, and serve what comes out.")
    return ChatModel(base.model, base.tokenizer, template_for(None, tokenizer), name=name)
