"""The tokenizer in a GGUF file is the model's; what llama.cpp would read otherwise is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier import UserError
from luthier.chat import render
from luthier.data.tokenizer import load_tokenizer
from luthier.export.gguf.export import export_gguf
from luthier.export.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Vocabulary, vocabulary_of, without_marks
from luthier.models.hub import fetch

TEXTS = (
    "The quick brown fox: 3.14159, isn't it?  Two  spaces\n\n\tand tabs",
    "春眠不觉晓，处处闻啼鸟。2024年3月5日",
    "繁體中文 mixed with English、日本語テキスト",
    "😀👩‍👩‍👧🇨🇳 ½ ①",
    "def f(x):\n    return {k: v ** 2 for k, v in x.items()}  # 平方\r\n",
    "<|im_start|>user\n你好<|im_end|>\n",
)


def of(folder: Path, rows: int, template: str | None = None) -> Vocabulary:
    return vocabulary_of(load_tokenizer(folder), rows, [2], template, "here")


def test_the_embedded_model_is_cut_as_qwen_is() -> None:
    found = of(fetch("tiny"), 4100)
    assert (found.model, found.pre) == ("gpt2", "qwen2")
    assert found.tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert found.kinds[:3] == [CONTROL] * 3
    assert found.kinds[-1] == UNUSED
    assert found.flags["eos_token_id"] == 2
    assert found.flags["add_bos_token"] is False
    assert found.notes == ()


@pytest.mark.parametrize(
    ("name", "model", "pre"),
    [
        ("gpt2", "gpt2", "gpt-2"),
        ("llama2", "llama", "default"),
        pytest.param("llama3", "gpt2", "llama-bpe", marks=pytest.mark.slow),
    ],
)
def test_published_tokenizers_are_known(name: str, model: str, pre: str, shared: Path) -> None:
    folder = shared / "data/tokenizers" / name
    found = of(folder, load_tokenizer(folder).vocab_size)
    assert (found.model, found.pre) == (model, pre)


def pieces(folder: Path) -> Path:
    """A tokenizer as Llama 2's: pieces with ▁ for a space, bytes for what is in none of them."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁a", "▁ab", "abab"]
    merges = [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b"), ("ab", "ab")]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


def test_pieces_are_scored_in_the_order_of_their_merges(tmp_path: Path) -> None:
    found = of(pieces(tmp_path / "pieces"), 266)
    assert (found.model, found.flags["add_space_prefix"]) == ("llama", True)
    assert [found.kinds[number] for number in (0, 1, 3, 259)] == [UNKNOWN, CONTROL, BYTE, NORMAL]
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert score["ab"] > score["▁a"] > score["▁ab"] > score["abab"] > score["a"]


def test_a_tokenizer_that_llamacpp_does_not_have_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}')
    with pytest.raises(UserError, match="WordLevel"):
        of(tmp_path, 2)
    odd = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    odd.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("a", "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    odd.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="does not cut words"):
        of(tmp_path, 2)


def test_the_template_without_marks_writes_the_same() -> None:
    template = (fetch("tiny") / "chat_template.jinja").read_text(encoding="utf-8")
    plain = without_marks(template)
    assert "generation %}" not in plain.replace("add_generation_prompt", "").replace("-%}", " %}")
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "?"}]
    for prompt in (True, False):
        asked = {"add_generation_prompt": prompt}
        assert render(plain, messages, **asked) == render(template, messages, **asked)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not here: pip install 'luthier[llamacpp]'"
)
def test_llamacpp_reads_the_same_tokens(tmp_path: Path) -> None:
    from luthier.export.gguf.llamacpp import LlamaCpp

    export_gguf("tiny", tmp_path / "tiny.gguf", kind="f16", check=False)
    tokenizer = load_tokenizer(fetch("tiny"))
    with LlamaCpp(tmp_path / "tiny.gguf") as engine:
        for text in TEXTS:
            assert engine.tokens(text) == tokenizer.encode(text).ids.tolist(), text


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not here: pip install 'luthier[llamacpp]'"
)
@pytest.mark.parametrize("name", ["gpt2", "llama2", "llama3", "mistral_v3", "qwen"])
def test_llamacpp_reads_the_tokens_of_published_models(name: str, shared: Path, tmp_path: Path) -> None:
    from luthier.export.gguf.llamacpp import LlamaCpp

    tokenizer = load_tokenizer(shared / "data/tokenizers" / name)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(**sizes, vocab_size=tokenizer.vocab_size, bos_token_id=None, eos_token_id=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "out.gguf", kind="f16", check=False)
    with LlamaCpp(tmp_path / "out.gguf") as engine:
        for text in TEXTS[:-1]:
            assert engine.tokens(text) == tokenizer.encode(text).ids.tolist(), text
