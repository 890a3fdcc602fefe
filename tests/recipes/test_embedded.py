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
    with pytest.raises(Exception, match="knows the roles system, user, assistant and tool"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "42"}], tokenize=False)


def test_template_writes_tools_in_the_manner_of_hermes(tokenizer):
    tool = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "巴黎"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "巴黎几点了？"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"time": "10:00"}'},
        {"role": "assistant", "content": "10:00。"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    assert text == (
        f"<|im_start|>system\nBe brief.\n<tools>\n{json.dumps(tool)}\n</tools><|im_end|>\n"
        "<|im_start|>user\n巴黎几点了？<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_time", "arguments": {"city": "巴黎"}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"time": "10:00"}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n10:00。<|im_end|>\n"
    )
    encoded = tokenizer.apply_chat_template(
        messages, tools=[tool], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    answers = text.split("<|im_start|>assistant\n")[1:]
    assert tokenizer.decode(supervised) == "".join(answer.split("<|im_end|>")[0] + "<|im_end|>" for answer in answers)


def test_template_is_the_one_beside_its_recipe(root, folder):
    assert (folder / "chat_template.jinja").read_text("utf-8") == (root / "recipes/tiny/chat_template.jinja").read_text("utf-8")


def test_recipe_names_the_tokens_that_the_model_counts_on(script, root):
    """Special tokens first, in the order of the configuration's ids."""
    tokenizer = script("tokenizer")
    recipe = tokenizer.Recipe.read(root / "recipes/tiny/tokenizer.yaml")
    assert recipe.special[tokenizer.PAD] == "<|endoftext|>"
    assert recipe.special[tokenizer.END] == "<|im_end|>"
    assert tokenizer.configuration(recipe.vocabulary).eos_token_id == tokenizer.END
    assert recipe.output == root / "build/tiny/init"


def test_script_trains_a_tokenizer_that_loads(script, root, tmp_path):
    rows = [{"text": "Once upon a time, long ago."}, {"messages": [{"role": "user", "content": "你好"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows * 20), "utf-8")
    recipe = (root / "recipes/tiny/tokenizer.yaml").read_text("utf-8").replace("vocabulary: 4096", "vocabulary: 300")
    (tmp_path / "tokenizer.yaml").write_text(recipe, "utf-8")
    places = ["--sources", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "model")]
    script("tokenizer").main([str(tmp_path / "tokenizer.yaml"), *places])
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.decode(loaded("Once 你好 12")["input_ids"]) == "Once 你好 12"
    assert len(loaded) <= 300
    assert "{%- generation -%}" in loaded.chat_template
