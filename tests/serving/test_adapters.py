"""Adapters answer side by side, come and go, and only from where they may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from luthier.errors import UserError
from luthier.generation.chat import ChatModel
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.hub import fetch
from luthier.models.methods import load_adapter
from luthier.serving.adapters import adapter_folder
from luthier.workshop import load_chat
from tests.serving.conftest import Running

HOW: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
QUESTION: list[Any] = [{"role": "user", "content": "Tell me a story about a cat."}]


def write(folder: Path, count: int) -> list[Path]:
    """Random adapters of the embedded model, strong enough that each says something else."""
    model = load_chat("tiny").model
    insert_adapter(model, AdapterConfig(rank=2, alpha=8, target=("q_proj", "v_proj")), seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    folders = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        for parameter in trained:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.12
        folders.append(folder / f"a{number}")
        write_adapter(folders[-1], model)
    return folders


def alone(folder: Path) -> str:
    """What the model says with one adapter, by itself."""
    chat = load_chat("tiny")
    load_adapter(chat.model, folder)
    return chat.chat(QUESTION, max_new_tokens=HOW["max_tokens"])


def says(server: Running, name: str, key: str = "none") -> str:
    answer = server.client(key).chat.completions.create(model=name, messages=QUESTION, **HOW)
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("count", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_each_answers_by_its_own(serving: Callable[..., Running], tiny: ChatModel, tmp_path: Path, count: int) -> None:
    folders = write(tmp_path, count)
    server = serving(load_chat("tiny"), adapters=[(folder.name, folder) for folder in folders])
    names = ["tiny", *(folder.name for folder in folders)]
    cards = server.client().models.list().data
    assert [card.id for card in cards] == names
    assert cards[1].parent == "tiny"  # type: ignore[attr-defined]
    with ThreadPoolExecutor(len(names)) as clients:
        said = list(clients.map(lambda name: says(server, name), names))
    assert said == [tiny.chat(QUESTION, max_new_tokens=HOW["max_tokens"]), *map(alone, folders)]
    assert len(set(said)) > count / 2


def test_they_come_and_go_with_the_key_and_from_allowed_folders(serving: Callable[..., Running], tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    (inside,), (outside,) = write(home, 1), write(other, 1)
    (home / "link").symlink_to(outside)
    server = serving(load_chat("tiny"), key="k", adapter_folders=[home])
    client = server.client("k")

    def load(name: str, path: Path) -> Any:
        return client.post("/load_lora_adapter", body={"lora_name": name, "lora_path": str(path)}, cast_to=str)

    for path in (outside, home / ".." / "other" / "a0", home / "link", Path("/etc")):
        with pytest.raises(openai.PermissionDeniedError, match="--adapter-folder"):
            load("a", path)
    with pytest.raises(openai.BadRequestError, match="no adapter in this folder"):
        load("a", home)
    load("a", inside)
    assert says(server, "a", "k") == alone(inside)
    vector = client.embeddings.create(model="a", input="cat").data[0].embedding
    assert vector != client.embeddings.create(model="tiny", input="cat").data[0].embedding
    for name in ("a", "tiny"):
        with pytest.raises(openai.BadRequestError, match="already"):
            load(name, inside)
    with pytest.raises(openai.BadRequestError, match="is no adapter"):
        client.post("/unload_lora_adapter", body={"lora_name": "tiny"}, cast_to=str)
    client.post("/unload_lora_adapter", body={"lora_name": "a"}, cast_to=str)
    with pytest.raises(openai.NotFoundError):
        says(server, "a", "k")
    load("a", inside)


def test_without_a_key_nobody_loads(serving: Callable[..., Running], tmp_path: Path) -> None:
    server = serving(adapter_folders=[tmp_path])
    with pytest.raises(openai.PermissionDeniedError, match="--api-key"):
        server.client().post("/load_lora_adapter", body={"lora_name": "a", "lora_path": str(tmp_path)}, cast_to=str)


def test_an_adapter_by_name_and_folder(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 1)
    assert adapter_folder(f"polite={folder}") == ("polite", folder)
    with pytest.raises(UserError, match="is not `name=path`"):
        adapter_folder(str(folder))
    with pytest.raises(UserError, match="is no adapter"):
        adapter_folder(f"polite={fetch('tiny')}")
