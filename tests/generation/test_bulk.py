"""Answers written in bulk are those that the slots write, with the model's own log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from luthier import UserError
from luthier.generation.bulk import Written, write_answers
from luthier.generation.decode import Decoding, generate
from tests.families import build
from tests.generation.test_decode import Letters, prompts

WARM = Decoding(max_new_tokens=14, temperature=1.0, seed=3)


@torch.no_grad()
def scored(model: PreTrainedModel, prompt: list[int], answer: Written, temperature: float) -> torch.Tensor:
    """Log-probabilities of an answer's tokens, from the whole sequence at once."""
    tokens = torch.tensor([*prompt, *answer.tokens.tolist()])
    logits = model(tokens[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, tokens[len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_bulk_writes_what_slots_write(family: str) -> None:
    model = build(family)
    free = generate(model, Letters(), prompts(), WARM)
    stop = Decoding(max_new_tokens=14, temperature=1.0, seed=3, stop_ids=frozenset(answer.tokens[5] for answer in free[::2]))
    expected = generate(model, Letters(), prompts(), stop)
    assert len({len(answer.tokens) for answer in expected}) > 1
    for rows in (3, 32):
        got = write_answers(model, Letters(), prompts(), stop, rows=rows)
        assert [tuple(answer.tokens.tolist()) for answer in got] == [answer.tokens for answer in expected]
        assert [answer.text for answer in got] == [answer.text for answer in expected]
        assert [answer.finished for answer in got] == [answer.reason == "stop" for answer in expected]
    for prompt, answer in zip(prompts(), got, strict=True):
        torch.testing.assert_close(torch.from_numpy(answer.logprobs), scored(model, prompt, answer, 1.0), atol=1e-4, rtol=0)


def test_the_answers_to_a_prompt_are_each_their_own() -> None:
    model = build("llama")
    repeated = [prompt for prompt in prompts() for _ in range(4)]
    settings = Decoding(max_new_tokens=10, temperature=0.8, top_p=0.9, seed=1)
    expected = generate(model, Letters(), repeated, settings)
    for rows in (9, 64):
        got = write_answers(model, Letters(), prompts(), settings, answers=4, rows=rows)
        assert [tuple(answer.tokens.tolist()) for answer in got] == [answer.tokens for answer in expected]
    assert len({answer.tokens.tobytes() for answer in got[:4]}) == 4
    for prompt, answer in zip(repeated, got, strict=True):
        torch.testing.assert_close(torch.from_numpy(answer.logprobs), scored(model, prompt, answer, 0.8), atol=1e-4, rtol=0)
    later = write_answers(model, Letters(), prompts()[2:3], settings, answers=4, first=8)
    assert [answer.tokens.tolist() for answer in later] == [answer.tokens.tolist() for answer in got[8:12]]


def test_a_model_with_states_reads_its_prompt_for_every_answer() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2)).eval()
    some = prompts()[:3]
    expected = generate(model, Letters(), [prompt for prompt in some for _ in range(2)], WARM)
    got = write_answers(model, Letters(), some, WARM, answers=2)
    assert [tuple(answer.tokens.tolist()) for answer in got] == [answer.tokens for answer in expected]


def test_stop_strings_end_answers() -> None:
    model = build("llama")
    (free,) = generate(model, Letters(), [prompts()[3]], Decoding(max_new_tokens=10))
    settings = Decoding(max_new_tokens=10, stop_strings=(Letters().decode(free.tokens[3:5]),))
    (expected,) = generate(model, Letters(), [prompts()[3]], settings)
    (got,) = write_answers(model, Letters(), [prompts()[3]], settings)
    assert (tuple(got.tokens.tolist()), got.text, got.finished) == (expected.tokens, expected.text, True)


def test_long_answers_outgrow_the_room_of_the_cache() -> None:
    model = build("llama")
    settings = Decoding(max_new_tokens=90, temperature=1.0)
    expected = generate(model, Letters(), prompts()[:2], settings, slots=1)
    got = write_answers(model, Letters(), prompts()[:2], settings)
    assert [tuple(answer.tokens.tolist()) for answer in got] == [answer.tokens for answer in expected]


def test_the_context_bounds_answers_and_training_mode_comes_back() -> None:
    model = build("gpt2", n_positions=24).train()
    (answer,) = write_answers(model, Letters(), [prompts()[3]], Decoding(max_new_tokens=100))
    assert (len(answer.tokens), answer.finished) == (24 - 17, False)
    assert model.training
    with pytest.raises(UserError, match="40 tokens, the model's context is 24"):
        write_answers(model, Letters(), [prompts()[5]], Decoding())
    with pytest.raises(UserError, match="empty"):
        write_answers(model, Letters(), [[]], Decoding())
    assert write_answers(model, Letters(), [], Decoding()) == []


@pytest.mark.parametrize(
    "field", [{"presence_penalty": 0.5}, {"logit_bias": ((3, 1.0),)}, {"num_beams": 2}, {"repetition_penalty": 1.2}]
)
def test_settings_that_a_score_cannot_heed_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not for those written in bulk"):
        write_answers(build("llama"), Letters(), prompts()[:1], Decoding(**field))
