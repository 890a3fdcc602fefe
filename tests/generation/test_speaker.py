"""A speaker answers as its model does, changes adapters in place, and keeps what was read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier import UserError
from luthier.generation.speaker import Speaker
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.workshop import change_adapter, load_chat, load_speaker
from tests.chat_folders import adapter_folder, model_folder
from tests.families import build

QUESTION = [{"role": "user", "content": "Hello 你好, how are you today?"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, an adapter of the first, and one of it that trains a whole module."""
    folder = tmp_path_factory.mktemp("speaker")
    base = model_folder("qwen3", folder / "base")
    model_folder("qwen3", folder / "other", seed=3)
    adapter_folder("qwen3", folder / "plain", base)
    whole = build("qwen3")
    whole.config.name_or_path = str(base)
    insert_adapter(whole, AdapterConfig(rank=2, modules_to_save=("lm_head",)), seed=1)
    write_adapter(folder / "whole", whole)
    return folder


def said(speaker: Speaker, messages: list[dict[str, str]] = QUESTION) -> str:
    return "".join(piece.text for piece in speaker.stream(messages, max_new_tokens=12))


def test_adapters_change_between_two_answers(home: Path) -> None:
    speaker = load_speaker(home / "plain")
    base, plain = (load_chat(home / name).chat(QUESTION, max_new_tokens=12) for name in ("base", "plain"))
    assert base != plain
    assert (speaker.name, said(speaker)) == ("plain", plain)
    speaker.bare()
    assert (speaker.name, said(speaker)) == (str(home / "base"), base)
    assert change_adapter(speaker, "plain") is None
    assert (speaker.names, said(speaker)) == (("plain",), plain)
    assert change_adapter(speaker, str(home / "plain")) is None
    assert speaker.names == ("plain",), "it is not read twice"
    talk = [*QUESTION, {"role": "assistant", "content": plain}, {"role": "user", "content": "And?"}]
    assert said(speaker, talk) == load_chat(home / "plain").chat(talk, max_new_tokens=12)
    assert speaker._prefixes.reused > len(QUESTION[0]["content"])


def test_an_adapter_of_another_base_is_told(home: Path) -> None:
    speaker = load_speaker(home / "other")
    warning = change_adapter(speaker, str(home / "plain"))
    assert warning is not None
    assert "was trained on" in warning
    with pytest.raises(UserError, match="no adapter"):
        change_adapter(speaker, str(home / "base"))


def test_what_cannot_be_taken_off_stays_and_answers_as_it_does(home: Path) -> None:
    speaker = load_speaker(home / "whole")
    assert said(speaker) == load_chat(home / "whole").chat(QUESTION, max_new_tokens=12)
    for change in (speaker.bare, lambda: change_adapter(speaker, str(home / "plain"))):
        with pytest.raises(UserError, match="cannot be taken off"):
            change()


def test_an_answer_that_is_broken_off_leaves_the_speaker_whole(home: Path) -> None:
    speaker = load_speaker(home / "plain")
    whole = said(speaker)
    pieces = speaker.stream(QUESTION, max_new_tokens=12)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not speaker.chat.model.training
    assert said(speaker) == whole
    with pytest.raises(UserError, match="context"):
        speaker.stream([{"role": "user", "content": "long " * 400}])


def test_the_choice_to_think_is_seen_in_the_template(home: Path, tmp_path: Path) -> None:
    assert not load_speaker(home / "base").may_think()
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    with torch.no_grad():
        assert load_speaker(model_folder("qwen3", tmp_path / "thinks", template=template)).may_think()
