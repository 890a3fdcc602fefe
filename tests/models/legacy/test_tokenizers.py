"""Tokenizers of converted models give the ids of the originals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from luthier.data.tokenizer import load_tokenizer
from luthier.models.hub import fetch
from luthier.models.legacy.command import convert_folder
from tests.models.legacy.cases import copy_of, fixture


def vectors(folder: Path) -> list[tuple[str, list[int]]]:
    """Texts and the ids that the library gives; without the texts in which Luthier knows special tokens, as templates need it."""
    listed = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))["vectors"]
    return [(vector["text"], vector["ids"]) for vector in listed if "<s>" not in vector["text"]]


@pytest.fixture
def chatglm3(shared: Path, tmp_path: Path) -> Path:
    folder = copy_of(fixture(shared, "chatglm3"), tmp_path / "chatglm3-6b")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(shared / "data" / "tokenizers" / "chatglm3" / name, folder / name)
    return folder


def test_chatglm3_gives_the_ids_of_sentencepiece_and_knows_its_special_tokens(chatglm3: Path, shared: Path) -> None:
    tokenizer = load_tokenizer(fetch(str(chatglm3)))
    for text, ids in vectors(shared / "data" / "tokenizers" / "chatglm3"):
        assert tokenizer.encode(text).ids.tolist() == ids, text
    reference = SentencePieceProcessor(model_file=str(chatglm3 / "tokenizer.model"))
    text = "[gMASK]sop<|user|>\n a sop to philosophy<|assistant|>"
    assert tokenizer.encode(text).ids.tolist() == [64790, 64792, 64795, *reference.encode("\n a sop to philosophy"), 64796]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.adds_bos) == (2, 0, False)


def test_chatglm2_has_no_role_tokens(chatglm3: Path) -> None:
    config = json.loads((chatglm3 / "config.json").read_text())
    (chatglm3 / "config.json").write_text(json.dumps(config | {"_name_or_path": "THUDM/chatglm2-6b"}))
    tokenizer = load_tokenizer(fetch(str(chatglm3)))
    assert tokenizer.encode("[gMASK]sop").ids.tolist() == [64790, 64792]
    assert tokenizer.vocab_size == 64794


def test_there_and_back_no_tokenizer_is_only_nearly_right(chatglm3: Path, tmp_path: Path) -> None:
    """`sop` is a special token behind a mask token alone, which `tokenizer.json` cannot say: the vocabulary stays what it was."""
    native, back = tmp_path / "native", tmp_path / "back"
    convert_folder(str(chatglm3), native)
    assert not (native / "tokenizer.json").exists()
    assert load_tokenizer(native).encode("[gMASK]sop philosophy").ids.tolist()[:2] == [64790, 64792]
    convert_folder(str(native), back, original_names=True)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (back / name).read_bytes() == (chatglm3 / name).read_bytes()
    assert not (back / "added_tokens.json").exists()


def test_a_tokenizer_json_keeps_its_ids_in_the_native_folder(shared: Path, tmp_path: Path) -> None:
    """XVERSE has one. In a folder of another class transformers must not rebuild it in that class's way."""
    folder = copy_of(fixture(shared, "xverse"), tmp_path / "xverse")
    origin = shared / "data" / "tokenizers" / "minimind"
    shutil.copyfile(origin / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false}')
    native = fetch(str(folder))
    ours, reference = load_tokenizer(native), Tokenizer.from_file(str(origin / "tokenizer.json"))
    plain = AutoTokenizer.from_pretrained(native)
    for text, _ids in vectors(origin):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert ours.encode(text).ids.tolist() == ids
        assert plain(text, add_special_tokens=False).input_ids == ids


def test_baichuan_and_internlm_are_read_by_sentencepiece(shared: Path, tmp_path: Path) -> None:
    """Their code did nothing but call sentencepiece, and put `<s>` in front where the files say so."""
    origin = shared / "data" / "tokenizers" / "internlm2"  # a stand-in of the same kind
    for name, adds_bos in (("baichuan2_7b", False), ("baichuan1_13b", False), ("internlm1", True)):
        folder = copy_of(fixture(shared, name), tmp_path / name)
        shutil.copyfile(origin / "tokenizer.model", folder / "tokenizer.model")
        tokenizer = load_tokenizer(fetch(str(folder)))
        assert all(tokenizer.encode(text).ids.tolist() == ids for text, ids in vectors(origin))
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, adds_bos)
