"""Whole-string ids equal to the reference libraries', offsets that are true, and a saved tokenizer that gives the same ids."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.tokenizer import Encoded, LibraryBackend, Tokenizer, load_tokenizer
from luthier.data.tokenizer_pieces import PieceBackend
from luthier.data.tokenizer_spm import SentencePieceEngine
from luthier.errors import UserError

SENTENCEPIECE = ["llama2", "mistral_v3", "internlm2", "chatglm3"]
TIKTOKEN = ["qwen", "llama3"]
LIBRARY = ["gpt2", "minimind", "smollm2", "torchtitan_test"]
ALL = SENTENCEPIECE + TIKTOKEN + LIBRARY


def bare(shared: Path, name: str, folder: Path) -> Path:
    """A copy of the shared tokenizer's vocabulary alone, without configuration."""
    for file in (shared / "data/tokenizers" / name).iterdir():
        if "config" not in file.name and file.name not in ("vectors.json", "chat_template.jinja"):
            shutil.copy(file, folder)
    return folder


def vectors(shared: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((shared / "data/tokenizers" / name / "vectors.json").read_text())["vectors"]


def prose(shared: Path) -> list[str]:
    files = ["alpaca_zh_demo.json", "alpaca_en_demo.json"]
    rows = [row for file in files for row in json.loads((shared / "data/llamafactory" / file).read_text())[:200]]
    return [f"{row['instruction']}\n    {row['output']}" for row in rows]


@pytest.mark.parametrize("name", ALL)
def test_ids_are_those_of_the_reference_library(shared: Path, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(bare(shared, name, tmp_path))
    if isinstance(tokenizer.backend, PieceBackend):  # these vectors were made with no special token registered
        tokenizer = Tokenizer(PieceBackend(tokenizer.backend.engine, {}), roles={}, fingerprint="", adds_bos=False)
    rows = vectors(shared, name)
    found = tokenizer.encode_batch([row["text"] for row in rows])
    assert [encoded.ids.tolist() for encoded in found] == [row["ids"] for row in rows]
    assert [tokenizer.decode(encoded.ids, skip_special=False) for encoded in found] == [row["decoded"] for row in rows]


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen", "gpt2"])
def test_ids_are_those_of_llama_cpp(shared: Path, tmp_path: Path, name: str) -> None:
    official = {"llama2": "llama-spm", "llama3": "llama-bpe", "qwen": "qwen2", "gpt2": "gpt-2"}[name]
    folder = shared / "data/tokenizers/llama_cpp"
    texts = (folder / "ggml-vocab.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    wanted = [[int(id_) for id_ in line.split()] for line in (folder / f"{official}.out").read_text().split("\n")]
    found = load_tokenizer(bare(shared, name, tmp_path)).encode_batch(texts)
    assert [encoded.ids.tolist() for encoded in found] == wanted[: len(texts)]


def characters(text: str, encoded: Encoded) -> list[tuple[int, int]]:
    return list(zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_offsets_cover_the_text_in_order(shared: Path, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(bare(shared, name, tmp_path))
    lossy = name == "torchtitan_test"  # its vocabulary leaves out what it does not know
    for text in [row["text"] for row in vectors(shared, name)] + prose(shared)[::20]:
        places = characters(text, tokenizer.encode(text))
        assert all(0 <= start <= end <= len(text) for start, end in places)
        assert all(one[0] <= two[0] for one, two in pairwise(places))
        assert lossy or set(range(len(text))) == {place for start, end in places for place in range(start, end)}


@pytest.mark.parametrize("name", ["llama2", "mistral_v3", "internlm2", "chatglm3"])
def test_offsets_are_those_of_sentencepiece(shared: Path, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(bare(shared, name, tmp_path))
    engine = tokenizer.backend.engine  # type: ignore[union-attr]
    plain = PieceBackend(engine, {})
    texts = [row["text"] for row in vectors(shared, name) if row["text"]] + prose(shared)[::10]
    for text, fast in zip(texts, plain.encode_batch(texts, 1), strict=True):
        for ours, theirs in zip(fast, engine.aligned(text), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_character_in_several_byte_tokens_belongs_to_each(shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "data/tokenizers/llama2")
    text = "a🦙b"
    encoded = tokenizer.encode(text)
    inside = [place for place in characters(text, encoded) if place == (1, 2)]
    assert len(inside) == 4
    assert characters(text, encoded)[-1] == (2, 3)


@pytest.mark.parametrize(
    ("name", "end"), [("llama2", "</s>"), ("qwen", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gpt2", "<|endoftext|>")]
)
def test_special_tokens_in_the_text_are_recognised(shared: Path, tmp_path: Path, name: str, end: str) -> None:
    tokenizer = load_tokenizer(bare(shared, name, tmp_path))
    text = f"你好 there{end}\nmore{end}"
    encoded = tokenizer.encode(text)
    hits = [k for k, place in enumerate(characters(text, encoded)) if text[slice(*place)] == end]
    assert len(hits) == 2
    assert len({int(encoded.ids[k]) for k in hits}) == 1
    assert tokenizer.decode(encoded.ids, skip_special=False) == text
    assert end not in tokenizer.decode(encoded.ids)


def test_configuration_beside_a_bare_model_names_its_tokens(shared: Path, tmp_path: Path) -> None:
    bare(shared, "internlm2", tmp_path)
    added = {"92543": {"content": "<|im_start|>"}, "92542": {"content": "<|im_end|>"}}
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": added, "chat_template": "{{ messages }}", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.adds_bos) == (92542, 1, False)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.encode("<|im_start|>hi<|im_end|>").ids.tolist()[::2] == [92543, 92542]


SAVED_FAST = ["llama2", "gpt2", "minimind"]


@pytest.mark.parametrize("name", [name if name in SAVED_FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALL])
def test_plain_autotokenizer_gives_the_same_ids_after_saving(shared: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    tokenizer = load_tokenizer(bare(shared, name, source))
    assert tokenizer.save(target, chat_template="{{ messages[0].content }}") is None
    reloaded, again = AutoTokenizer.from_pretrained(target), load_tokenizer(target)
    assert reloaded.chat_template == again.chat_template == "{{ messages[0].content }}"
    assert (again.bos_token, again.eos_token, again.adds_bos) == (tokenizer.bos_token, tokenizer.eos_token, tokenizer.adds_bos)
    end = tokenizer.eos_token or ""
    texts = [row["text"] for row in vectors(shared, name)] + [f"{text}{end}\n{text}{end}" for text in prose(shared)[::7]]
    for text, own, back in zip(texts, tokenizer.encode_batch(texts), again.encode_batch(texts), strict=True):
        assert reloaded(text, add_special_tokens=False).input_ids == own.ids.tolist() == back.ids.tolist(), text


@pytest.mark.parametrize("name", ["minimind", "torchtitan_test"])
def test_a_transformers_folder_is_autotokenizers(shared: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = shared / "data/tokenizers" / name
    tokenizer, plain = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.hf is not None
    assert tokenizer.chat_template
    for text in [row["text"] for row in vectors(shared, name)]:
        assert tokenizer.encode(text).ids.tolist() == plain(text, add_special_tokens=False).input_ids
    assert tokenizer.save(tmp_path) is None
    assert load_tokenizer(tmp_path).chat_template == tokenizer.chat_template


def test_an_inexact_conversion_is_said_and_not_written(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SentencePieceEngine(bare(shared, "llama2", tmp_path) / "tokenizer.model")
    backend = PieceBackend(engine, {**engine.specials, "<|turn|>": 32000})
    tokenizer = Tokenizer(backend, roles=engine.roles, fingerprint="", adds_bos=True)
    convert = engine.convert
    wrong = PieceBackend(SentencePieceEngine(shared / "data/tokenizers/chatglm3/tokenizer.model"), {}).engine.convert
    monkeypatch.setattr(engine, "convert", lambda specials: wrong(specials) or convert(specials))
    target = tmp_path / "target"
    assert "other ids than it had in training" in (tokenizer.save(target) or "")
    assert not (target / "tokenizer.json").exists()
    text = "def f():\n    return 1<|turn|>"
    assert load_tokenizer(target).encode(text).ids.tolist() == tokenizer.encode(text).ids.tolist()


def test_offsets_keep_the_leading_space_that_a_post_processor_would_trim() -> None:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, processors

    rust = Rust(models.BPE({"a": 0, "Ġ": 1, "b": 2, "Ġb": 3}, [("Ġ", "b")]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.post_processor = processors.ByteLevel(trim_offsets=True)
    rust.enable_truncation(1)
    encoded = LibraryBackend(rust).encode_batch(["a b"], 1)[0]
    assert characters("a b", encoded) == [(0, 1), (1, 3)]
    assert rust.encode("a b").offsets == [(0, 1)], "the given tokenizer itself is left as it was"


def test_text_beyond_the_model_falls_back_to_its_own_offsets(tmp_path: Path) -> None:
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat\n" * 50 + "a big dog ran far in\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "tokenizer.vocab").unlink()
    tokenizer = load_tokenizer(tmp_path)
    text = "the  ﬁne 猫 sat"  # two spaces become one, the ligature two letters, the cat is unknown
    encoded = tokenizer.encode(text)
    assert tokenizer.variables["unk_token"] == "<unk>"
    unknown = [text[a:b] for id_, (a, b) in zip(encoded.ids, characters(text, encoded), strict=True) if id_ == 0]
    assert unknown == ["猫"]
    assert characters(text, encoded)[-1][1] == len(text)


def test_fingerprint_follows_the_vocabulary(shared: Path, tmp_path: Path) -> None:
    first = load_tokenizer(bare(shared, "torchtitan_test", tmp_path)).fingerprint
    assert load_tokenizer(tmp_path).fingerprint == first
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary["added_tokens"] = vocabulary["added_tokens"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert load_tokenizer(tmp_path).fingerprint != first


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xfe broken")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg== 1\n")
    with pytest.raises(UserError, match="unknown tiktoken vocabulary of 2 ranks"):
        load_tokenizer(tmp_path)


def test_gzip_is_read(shared: Path, tmp_path: Path) -> None:
    packed = shared / "data/tokenizers/smollm2/tokenizer.json.gz"
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    (tmp_path / "packed").mkdir()
    plain, own = load_tokenizer(tmp_path), load_tokenizer(bare(shared, "smollm2", tmp_path / "packed"))
    assert plain.encode("Hello 世界").ids.tolist() == own.encode("Hello 世界").ids.tolist()
