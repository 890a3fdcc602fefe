"""A vLLM server's answers are taken as they are, token for token, and what is not what was asked for is refused in a line.

The server here is a small one that answers as vLLM documents it (`vllm_server.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from luthier.errors import UserError
from luthier.generation import served
from luthier.generation.bulk import write_answers
from luthier.generation.sampling import Decoding
from luthier.generation.served import VLLMServer
from tests.families import VOCAB, build
from tests.generation.test_bulk import scored
from tests.generation.test_decode import Letters, prompts
from tests.generation.vllm_server import BASE, LENGTH, Engine, serving

WARM = Decoding(max_new_tokens=12, temperature=0.8, top_p=0.9, top_k=40, seed=3)


@pytest.fixture
def engine() -> Engine:
    return Engine(build("llama"), Letters())


@pytest.fixture
def url(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(served, "FIRST_WAIT", 0.01)
    with serving(engine) as address:
        yield address


def test_the_likeliest_answers_are_the_models_own(url: str) -> None:
    greedy = Decoding(max_new_tokens=12)
    free = write_answers(build("llama"), Letters(), prompts(), greedy)
    stop = Decoding(
        max_new_tokens=12,
        stop_ids=frozenset(int(answer.tokens[4]) for answer in free[::2]),
        stop_strings=(free[1].text[2:4],),
    )
    expected = write_answers(build("llama"), Letters(), prompts(), stop)
    assert {answer.finished for answer in expected} == {True, False}
    server = VLLMServer(url, vocabulary=VOCAB)
    assert (server.base, server.context) == (BASE, LENGTH)
    got = server.write(server.base, Letters(), prompts(), stop)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.tokens.tolist() == theirs.tokens.tolist()
        assert (mine.text, mine.finished) == (theirs.text, theirs.finished)


def test_samples_come_with_their_probabilities(url: str, engine: Engine) -> None:
    server = VLLMServer(url, vocabulary=VOCAB)
    got = server.write(server.base, Letters(), prompts(), WARM, answers=3, first=7)
    repeated = [prompt for prompt in prompts() for _ in range(3)]
    for prompt, answer in zip(repeated, got, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(answer.logprobs), scored(engine.model, prompt, answer, 0.8), atol=1e-4, rtol=0
        )
    asked = [body for path, body in engine.asked if path == "/v1/completions"]
    assert sorted(body["prompt"] for body in asked) == sorted(prompts())
    assert len({body["seed"] for body in asked}) == len(asked)
    named = {"n": 3, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "ignore_eos": True, "return_token_ids": True, "min_p": 0.0}
    assert all(body.items() >= named.items() for body in asked)
    again = server.write(server.base, Letters(), prompts(), WARM, answers=3, first=7)
    assert [answer.tokens.tolist() for answer in again] == [answer.tokens.tolist() for answer in got]


def test_answers_end_where_the_servers_context_does(url: str) -> None:
    server = VLLMServer(url)
    (answer,) = server.write(server.base, Letters(), [list(range(3, LENGTH))], Decoding(max_new_tokens=50))
    assert len(answer.tokens) == 3
    assert not answer.finished
    with pytest.raises(UserError, match="context is 128"):
        server.write(server.base, Letters(), [[5] * LENGTH], Decoding())


SPOILT: dict[str, tuple[Any, str]] = {
    "another prompt": (lambda choice: choice["prompt_token_ids"].append(5), "another prompt"),
    "no ids": (lambda choice: choice.update(token_ids=None), "no token ids.*0.10.2"),
    "another vocabulary": (lambda choice: choice["token_ids"].__setitem__(0, 5000), "gives token 5000"),
    "no probabilities": (lambda choice: choice.update(logprobs=None), "how probable"),
    "too few": (lambda choice: choice["logprobs"]["token_logprobs"].pop(), "how probable"),
    "aborted": (lambda choice: choice.update(finish_reason="abort"), "another reason.*abort"),
    "another end": (lambda choice: choice.update(finish_reason="stop"), "ends answers elsewhere"),
    "one number twice": (lambda choice: choice.update(index=0), "2 answers"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_was_not_asked_for_is_refused(url: str, engine: Engine, name: str) -> None:
    engine.spoil, message = SPOILT[name]
    server = VLLMServer(url, vocabulary=VOCAB)
    with pytest.raises(UserError, match=message) as refused:
        server.write(server.base, Letters(), prompts()[:1], WARM, answers=2)
    assert refused.value.where == "stage.writer.url"


def test_a_stop_token_in_the_middle_is_refused(url: str, engine: Engine) -> None:
    server = VLLMServer(url)
    (free,) = server.write(server.base, Letters(), prompts()[:1], Decoding(max_new_tokens=6))
    stop = Decoding(max_new_tokens=6, stop_ids=frozenset([int(free.tokens[2])]))
    engine.spoil = lambda choice: choice.update(
        token_ids=free.tokens.tolist(), logprobs={"token_logprobs": free.logprobs.tolist()}, finish_reason="length"
    )
    with pytest.raises(UserError, match="ends answers elsewhere"):
        server.write(server.base, Letters(), prompts()[:1], stop)


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(url: str, engine: Engine) -> None:
    server = VLLMServer(url)
    engine.failures = [503, 429]
    assert len(server.write(server.base, Letters(), prompts()[:1], WARM)) == 1
    engine.failures = [500] * 9
    with pytest.raises(UserError, match=r"says 500.*the engine is busy"):
        server.write(server.base, Letters(), prompts()[:1], WARM)
    engine.failures = []
    with pytest.raises(UserError, match=r"says 404.*`adapter-9` does not exist"):
        server.write("adapter-9", Letters(), prompts()[:1], WARM)


def test_a_server_that_is_not_there(url: str, engine: Engine) -> None:
    with pytest.raises(UserError, match="does not answer") as absent:
        VLLMServer("http://127.0.0.1:9")
    assert "vllm serve" in str(absent.value.hint)
    with pytest.raises(UserError, match="says 404"):
        VLLMServer(f"{url}/other")
