"""OpenAI's own client, unmodified, gets what it expects from OpenAI."""

from __future__ import annotations

import json
import math
from typing import Any

import openai
import pytest
from openai import OpenAI

from luthier.generation.chat import ChatModel
from tests.serving.conftest import Running

WHO: list[Any] = [{"role": "user", "content": "你是谁？"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a cat."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
    },
}


def ask(client: OpenAI, messages: list[Any] = WHO, **how: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **{"temperature": 0, **how})


def joined(stream: Any) -> tuple[str, list[Any]]:
    chunks = list(stream)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "luthier"
    with pytest.raises(openai.NotFoundError, match="`ft:other/1` does not exist") as told:
        client.models.retrieve("ft:other/1")
    assert (told.value.code, told.value.param) == ("model_not_found", "model")


def test_an_answer_is_that_of_luthier_chat_whole_and_as_a_stream(client: OpenAI, tiny: ChatModel) -> None:
    for messages in (WHO, STORY, [*WHO, {"role": "assistant", "content": "小模型。"}, {"role": "user", "content": "2+3=?"}]):
        expected = tiny.chat(messages, max_new_tokens=40)
        whole = ask(client, messages, max_tokens=40)
        assert whole.choices[0].message.content == expected
        text, chunks = joined(
            ask(client, messages, max_completion_tokens=40, stream=True, stream_options={"include_usage": True})
        )
        assert text == expected
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert len({chunk.id for chunk in chunks}) == 1
        assert whole.usage.prompt_tokens == len(tiny.prompt(messages))


def test_where_an_answer_ends(client: OpenAI) -> None:
    short = ask(client, STORY, max_tokens=5).choices[0]
    assert short.finish_reason == "length"
    full = ask(client).choices[0].message.content
    stopped = ask(client, stop=[full[4:7], "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (full[:4], "stop")
    text, _ = joined(ask(client, stop=full[4:7], stream=True))
    assert text == full[:4]


def test_chance_is_that_of_the_seed(client: OpenAI) -> None:
    def say(seed: int | None) -> list[str]:
        answer = ask(client, STORY, temperature=2.0, n=2, max_tokens=12, **({} if seed is None else {"seed": seed}))
        assert [choice.index for choice in answer.choices] == [0, 1]
        return [choice.message.content for choice in answer.choices]

    assert say(7) == say(7)
    assert len({*say(7), *say(8)}) == 4
    assert say(None) != say(None)


def test_choices_share_a_stream(client: OpenAI) -> None:
    whole = ask(client, STORY, temperature=1.0, n=3, seed=5, max_tokens=8)
    texts, ends = ["", "", ""], [0, 0, 0]
    for chunk in ask(client, STORY, temperature=1.0, n=3, seed=5, max_tokens=8, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] += choice.finish_reason is not None
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [1, 1, 1]


def test_log_probabilities(client: OpenAI) -> None:
    told = ask(client, logprobs=True, top_logprobs=3).choices[0]
    scored = told.logprobs.content
    assert b"".join(bytes(token.bytes) for token in scored).decode() == told.message.content
    for token in scored:
        assert token.top_logprobs[0].token == token.token, "greedy"
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.0001
    streamed = [
        token
        for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == scored
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_a_function_is_called_and_its_result_told(client: OpenAI) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = ask(client, question, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments).values()
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny", "degrees": 21}'}
    assert "21" in ask(client, [*question, choice.message, result], tools=[WEATHER]).choices[0].message.content
    streamed = list(ask(client, question, tools=[WEATHER], stream=True))
    (delta,) = [chunk.choices[0].delta for chunk in streamed if chunk.choices[0].delta.tool_calls]
    told = delta.tool_calls[0].function
    assert (told.name, told.arguments) == (call.function.name, call.function.arguments)
    assert streamed[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in streamed)


def test_which_function_is_called(client: OpenAI) -> None:
    none = ask(client, tools=[WEATHER], tool_choice="none").choices[0]
    assert none.message.content == ask(client).choices[0].message.content
    named = ask(client, tools=[WEATHER, CLOCK], tool_choice={"type": "function", "function": {"name": "clock"}}).choices[0]
    (call,) = named.message.tool_calls
    assert call.function.name == "clock"
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
    required = ask(client, tools=[CLOCK], tool_choice="required", stream=True)
    names = [chunk.choices[0].delta.tool_calls[0].function.name for chunk in required if chunk.choices[0].delta.tool_calls]
    assert names == ["clock"]
    with pytest.raises(openai.BadRequestError, match="no function `other`"):
        ask(client, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "other"}})


def test_answers_of_a_form(client: OpenAI) -> None:
    age = {"type": "integer", "minimum": 1, "maximum": 9}
    properties = {"name": {"type": "string", "maxLength": 8}, "age": age}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    found = json.loads(ask(client, response_format=form, temperature=1.0, seed=3).choices[0].message.content)
    assert set(found) == {"name", "age"}
    assert 1 <= found["age"] <= 9
    text = ask(client, response_format={"type": "json_object"}, max_tokens=64).choices[0].message.content
    assert text.lstrip().startswith("{")


def test_characters_of_several_tokens_are_streamed_whole(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "said", "schema": {"const": "龘🎻你好👩‍🔬！"}}}
    text, chunks = joined(ask(client, response_format=form, stream=True))
    assert json.loads(text) == "龘🎻你好👩‍🔬！"
    assert all("\ufffd" not in (chunk.choices[0].delta.content or "") for chunk in chunks)
    scored = ask(client, response_format=form, logprobs=True).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in scored).decode() == text
    assert any("\ufffd" in token.token for token in scored), "a token that is a part of a character"


def test_penalties_and_biases(client: OpenAI) -> None:
    def written(**how: Any) -> list[str]:
        endless = {"0": -100, "2": -100}  # the tokens that end an answer
        said = client.completions.create(
            model="tiny", prompt="The cat", temperature=0, max_tokens=60, logprobs=0, **{"logit_bias": endless, **how}
        )
        assert said.usage.completion_tokens == 60
        return said.choices[0].logprobs.tokens

    def repeated(tokens: list[str]) -> int:
        return len(tokens) - len(set(tokens))

    plain = written()
    assert written(presence_penalty=0, frequency_penalty=0) == plain
    assert repeated(written(presence_penalty=2, frequency_penalty=2)) < repeated(plain)
    assert set(written(logit_bias={"0": -100, "2": -100, "300": 100})) == {written(logit_bias={"0": -100, "300": 100})[0]}


def test_completions(client: OpenAI, tiny: ChatModel) -> None:
    how: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    both = client.completions.create(prompt=["Once upon a time", "从前"], echo=True, **how)
    assert [choice.text[:4] for choice in both.choices] == ["Once", both.choices[1].text[:4]]
    assert both.choices[1].text.startswith("从前")
    ids = tiny.tokenizer.encode("Once upon a time").ids.tolist()
    plain = client.completions.create(prompt=ids, logprobs=2, **how)
    assert "Once upon a time" + plain.choices[0].text == both.choices[0].text
    scored = plain.choices[0].logprobs
    assert "".join(scored.tokens) == plain.choices[0].text
    assert scored.text_offset == [sum(map(len, scored.tokens[:place])) for place in range(len(scored.tokens))]
    assert all(len(top) <= 2 for top in scored.top_logprobs)
    streamed = client.completions.create(prompt="Once upon a time", stream=True, stream_options={"include_usage": True}, **how)
    chunks = list(streamed)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_embeddings(client: OpenAI) -> None:
    texts = ["The cat sleeps.", "今天天气很好。", "A much longer sentence about something else entirely, with many words."]
    coded = client.embeddings.create(model="tiny", input=texts)
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    for one, other, text in zip(coded.data, plain.data, texts, strict=True):
        assert math.isclose(sum(value * value for value in other.embedding), 1, rel_tol=1e-5)
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        alone = client.embeddings.create(model="tiny", input=text, encoding_format="float").data[0].embedding
        assert alone == pytest.approx(other.embedding, abs=1e-5), "padding changes nothing"
    last = client.embeddings.create(model="tiny", input=texts[0], extra_body={"pooling": "last"})
    assert last.data[0].embedding != pytest.approx(plain.data[0].embedding, abs=1e-2)
    with pytest.raises(openai.BadRequestError, match="256 dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"n": 0}, "n: "),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, "the model's context is 1024"),
        ({"max_tokens": 1_000_000}, "this server writes at most"),
        ({"extra_body": {"temprature": 1}}, "temprature: "),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "form of the answer",
        ),
        ({"tools": [], "tool_choice": "required"}, "`tools` is empty"),
    ],
)
def test_a_mistake_is_told_as_one(client: OpenAI, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        ask(client, **wrong)
    assert said in told.value.body["message"]  # type: ignore[index]
    assert told.value.type == "invalid_request_error"


def test_a_template_that_refuses_is_the_clients_mistake(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="arguments are not valid JSON"):
        ask(
            client,
            [
                *WHO,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
                },
            ],
        )


def test_what_is_not_there(client: OpenAI, served: Running) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=WHO)
    with pytest.raises(openai.NotFoundError):
        client.files.list()
    assert served.ask("DELETE", "/v1/models")[0] == 405
