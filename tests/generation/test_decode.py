"""Decoding in slots gives what the model says token by token, alone, without any cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from luthier import UserError
from luthier.generation.cache import RowCache
from luthier.generation.decode import Decoder, Decoding, Request, generate
from tests.families import CONFIGS, build

LENGTHS = (1, 30, 2, 17, 9, 40, 5)


class Letters:
    """A tokenizer whose token i is the character U+4E00 + i."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(chr(0x4E00 + i) for i in ids)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: list[int], count: int, stop: frozenset[int] = frozenset()) -> tuple[int, ...]:
    """Greedy decoding, the whole sequence anew for each token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in stop:
            break
    return tuple(tokens[len(prompt) :])


@pytest.mark.parametrize("family", CONFIGS)
def test_any_company_gives_the_answer_of_the_prompt_alone(family: str) -> None:
    model = build(family)
    free = [alone(model, prompt, 20) for prompt in prompts()]
    stop = frozenset(answer[5] for answer in free[::2])  # some end early, so that slots are freed and filled again
    expected = [answer[: next((i + 1 for i, token in enumerate(answer) if token in stop), 20)] for answer in free]
    assert len({len(answer) for answer in expected}) > 1
    settings = Decoding(max_new_tokens=20, stop_ids=stop)
    for slots in (1, 3, 32):
        assert [answer.tokens for answer in generate(model, Letters(), prompts(), settings, slots=slots)] == expected


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "gpt2", "falcon"])
@torch.no_grad()
def test_rows_that_join_and_leave_have_the_logits_of_the_whole_sequence(family: str) -> None:
    model = build(family)
    rows = [list(prompt) for prompt in prompts()]
    cache = RowCache(model)

    def check(logits: torch.Tensor, live: list[int]) -> None:
        for row, got in zip(live, logits, strict=True):
            torch.testing.assert_close(got, model(torch.tensor([rows[row]]), use_cache=False).logits[0, -1], atol=2e-4, rtol=0)

    def extend(live: list[int]) -> None:
        for row in live:
            rows[row].append(7 + row)
        check(cache.extend([7 + row for row in live]), live)

    check(cache.add(rows[:3]), [0, 1, 2])
    extend([0, 1, 2])
    cache.keep([0, 2])  # the longest leaves: columns are cut
    extend([0, 2])
    check(cache.add([rows[5], rows[3]]), [5, 3])  # a longer one joins: the others are padded
    extend([0, 2, 5, 3])
    cache.keep([])
    check(cache.add([rows[4]]), [4])
    extend([4])


def test_a_model_with_states_is_decoded_one_prompt_at_a_time() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2)).eval()
    expected = [alone(model, prompt, 6) for prompt in prompts()[:3]]
    answers = generate(model, Letters(), prompts()[:3], Decoding(max_new_tokens=6), slots=3)
    assert [answer.tokens for answer in answers] == expected


def test_sampling_does_not_depend_on_the_batch() -> None:
    model = build("llama")
    settings = Decoding(max_new_tokens=16, temperature=1.0, top_p=0.95, seed=3)
    together = generate(model, Letters(), prompts(), settings)
    assert generate(model, Letters(), prompts(), settings, slots=2) == together
    decoder = Decoder(model, Letters())
    decoder.submit(Request(prompts()[4], settings, index=4))
    assert [piece.answer for piece in decoder.run() if piece.answer] == [together[4]]
    other = Decoding(max_new_tokens=16, temperature=1.0, top_p=0.95, seed=4)
    assert generate(model, Letters(), prompts(), other) != together
    same_prompt = generate(model, Letters(), [prompts()[4]] * 4, settings)
    assert len({answer.tokens for answer in same_prompt}) == 4


def test_requests_with_different_settings_share_the_slots() -> None:
    model = build("qwen3")
    greedy, warm = Decoding(max_new_tokens=8), Decoding(max_new_tokens=12, temperature=1.0, repetition_penalty=1.3)
    expected = [
        generate(model, Letters(), [prompts()[0]], greedy)[0],
        generate(model, Letters(), [prompts()[1]], warm)[0],
    ]
    decoder = Decoder(model, Letters())
    decoder.submit(Request(prompts()[0], greedy))
    decoder.submit(Request(prompts()[1], warm))
    answers = [piece.answer for piece in decoder.run() if piece.answer]
    assert answers == expected


def test_reasons_text_and_stream_agree() -> None:
    model = build("llama")
    tokens = alone(model, prompts()[3], 10)
    stop_string = Letters().decode(tokens[3:5])
    streamed: dict[int, str] = {}

    def listen(index: int, text: str) -> None:
        streamed[index] = streamed.get(index, "") + text

    cases = {
        "length": (Decoding(max_new_tokens=10), tokens, tokens),
        "string": (Decoding(max_new_tokens=10, stop_strings=(stop_string,)), tokens[:5], tokens[:3]),
        "token": (Decoding(max_new_tokens=10, stop_ids=frozenset(tokens[3:4])), tokens[:4], tokens[:3]),
    }
    for name, (settings, expected_tokens, visible) in cases.items():
        streamed.clear()
        (answer,) = generate(model, Letters(), [prompts()[3]], settings, listen)
        assert answer.tokens == expected_tokens, name
        assert answer.text == streamed[0] == Letters().decode(visible), name
        assert answer.reason == ("length" if name == "length" else "stop")


def test_the_context_bounds_prompt_and_answer() -> None:
    model = build("gpt2", n_positions=24)
    (answer,) = generate(model, Letters(), [prompts()[3]], Decoding(max_new_tokens=100))
    assert (len(answer.tokens), answer.reason) == (24 - 17, "length")
    with pytest.raises(UserError, match="40 tokens, the model's context is 24"):
        generate(model, Letters(), [prompts()[5]], Decoding())
    with pytest.raises(UserError, match="empty"):
        generate(model, Letters(), [[]], Decoding())


def test_dropout_is_off_and_the_training_mode_comes_back() -> None:
    model = build("llama", attention_dropout=0.5).train()
    answers = generate(model, Letters(), prompts(), Decoding(max_new_tokens=5))
    assert model.training
    assert answers == generate(model.eval(), Letters(), prompts(), Decoding(max_new_tokens=5))
