"""The embedded model's folder: small, ordinary, and with a tokenizer that loses nothing."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoTokenizer


@pytest.fixture(scope="module")
def folder(root):
    return root / "src/luthier/models/tiny"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_fits_into_the_wheel(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000


def test_vocabulary_is_what_the_model_has(folder, tokenizer):
    config = AutoConfig.from_pretrained(folder)
    assert config.vocab_size == len(tokenizer) == 4096
    assert tokenizer.eos_token_id == config.eos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id != config.eos_token_id
    assert config.intermediate_size % 64 == config.hidden_size % 64 == 0


@pytest.mark.parametrize(
    "text",
    [
        "47 + 35 = 82",
        "我是黄大力的智能助手，很高兴认识你。",
        "  two  spaces\n\n\ttabs ",
        "emoji 🎻 and Ünïcödé",
        "繁體字與龘",
        "",
    ],
)
def test_encoding_loses_nothing(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_is_a_token(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer("12345+678")["input_ids"]]
    assert pieces == list("12345+678")


def test_template_marks_what_the_assistant_says(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    )
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(supervised) == "Hello!<|im_end|>"


def test_template_refuses_roles_it_does_not_know(tokenizer):
    with pytest.raises(Exception, match="knows the roles system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "42"}], tokenize=False)


def test_tokenizer_is_what_its_script_makes(script):
    """Special tokens first, in the order that the configuration counts on, then the bytes."""
    tokenizer = script("tokenizer")
    assert tokenizer.SPECIAL[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert tokenizer.configuration().eos_token_id == 2


def test_script_trains_a_tokenizer_that_loads(script, tmp_path, monkeypatch):
    tokenizer = script("tokenizer")
    monkeypatch.setattr(tokenizer, "VOCABULARY", 300)
    rows = [{"text": "Once upon a time, long ago."}, {"messages": [{"role": "user", "content": "你好"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows * 20), "utf-8")
    tokenizer.main([str(tmp_path / "rows.jsonl"), str(tmp_path / "model")])
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.decode(loaded("Once 你好 12")["input_ids"]) == "Once 你好 12"
    assert "{%- generation -%}" in loaded.chat_template
