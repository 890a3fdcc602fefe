"""A chat model answers as transformers' own generation does, and knows where an answer ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import UserError
from luthier.chat import ChatTemplate
from luthier.data.tokenizer import load_tokenizer
from luthier.generation.chat import ChatModel
from tests.chat_folders import TEMPLATE, model_folder

CONVERSATION = [
    {"role": "user", "content": "Hello 你好"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path) -> ChatModel:
    return chat_model(folder, TEMPLATE)


def chat_model(folder: Path, source: str) -> ChatModel:
    tokenizer = load_tokenizer(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return ChatModel(network, tokenizer, ChatTemplate("own", source, tokenizer.variables))


def test_answers_as_transformers_does(model: ChatModel, folder: Path) -> None:
    plain = AutoTokenizer.from_pretrained(folder)
    inputs = plain.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.prompt(CONVERSATION) == inputs["input_ids"][0].tolist()
    written = model.model.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=2)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert model.chat(CONVERSATION, max_new_tokens=24) == plain.decode(written, skip_special_tokens=True)


def test_pieces_add_up_and_many_questions_are_answered_like_one(model: ChatModel) -> None:
    questions = ["Hello", "你好，世界", CONVERSATION]
    answers = model.answers(questions, max_new_tokens=16)
    for question, answer in zip(questions, answers, strict=True):
        assert "".join(model.stream(question, max_new_tokens=16)) == answer.text == model.chat(question, max_new_tokens=16)


def test_a_system_prompt_is_for_conversations_without_one(model: ChatModel) -> None:
    first = model.prompt("Hi", system="Be brief")
    assert first == model.prompt([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}], system="Be long")
    assert first != model.prompt("Hi")


def test_tools_are_offered_by_the_template(folder: Path) -> None:
    model = chat_model(folder, "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{{ messages[0].content }}")
    prompt = model.prompt("Hi", tools=[{"name": "clock"}])
    assert model.tokenizer.decode(prompt) == "clock Hi"
    assert model.tokenizer.decode(model.prompt("Hi")) == "Hi"
    assert model.chat("Hi", tools=[{"name": "clock"}], max_new_tokens=4) == model.chat("clock Hi", max_new_tokens=4)


def test_ends_of_an_answer_come_from_tokenizer_config_and_template(model: ChatModel) -> None:
    template = SimpleNamespace(stop_strings=("<s>", "Human:"))
    both = ChatModel(model.model, model.tokenizer, cast(ChatTemplate, template))
    both.model.generation_config.eos_token_id = [2, 77]
    assert both.stop_ids() == {1, 2, 77}, "<s> is one token; Human: is none"
    settings = both.decoding(stop_ids=[99], stop_strings=["\n\n"], temperature=0.5)
    assert settings.stop_ids == {1, 2, 77, 99}
    assert settings.stop_strings == ("\n\n", "<s>", "Human:")
    assert settings.temperature == 0.5


def test_each_turn_has_randomness_of_its_own(model: ChatModel) -> None:
    once = model.chat("Hi", temperature=1.0, max_new_tokens=12, seed=1)
    assert once == model.chat("Hi", temperature=1.0, max_new_tokens=12, seed=1)
    assert once != model.chat("Hi", temperature=1.0, max_new_tokens=12, seed=2)


def test_mistakes_are_told_before_anything_is_written(folder: Path, model: ChatModel) -> None:
    strict = chat_model(folder, "{{ raise_exception('only questions') }}")
    with pytest.raises(UserError, match="only questions"):
        strict.stream("Hi")
    with pytest.raises(UserError, match="the model's context is 512"):
        model.stream("long" * 200)
    with pytest.raises(TypeError, match="temprature"):
        model.stream("Hi", temprature=1.0)
