"""What was read serves prompts that begin alike, and changes nothing but the work."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from luthier.generation.cache import RowCache
from luthier.generation.decode import Answer, Decoder, Request, generate
from luthier.generation.prefix import Prefixes
from luthier.generation.sampling import Decoding
from tests.families import build
from tests.generation.test_decode import Letters, prompts

SETTINGS = Decoding(max_new_tokens=10)
SYSTEM = list(range(40, 70))


def run(decoder: Decoder, *asked: list[int]) -> list[Answer]:
    requests = [Request(prompt, SETTINGS) for prompt in asked]
    for request in requests:
        decoder.submit(request)
    answers = {piece.request: piece.answer for piece in decoder.run() if piece.answer}
    return [answers[request] for request in requests]


def read(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> list[int]:
    """Where the number of tokens of each pass that reads prompts is noted."""
    counts: list[int] = []
    forward = model.forward

    def counting(*args: object, **kwargs: object) -> object:
        tokens = kwargs["input_ids"]
        assert isinstance(tokens, torch.Tensor)
        if tokens.shape[1] > 1:
            counts.append(tokens.numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    return counts


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "gpt2"])
def test_turns_of_a_chat_read_only_what_is_new(family: str) -> None:
    model, prefixes = build(family), Prefixes()
    decoder = Decoder(model, Letters(), prefixes=prefixes)
    (first,) = run(decoder, [*SYSTEM, 7, 8, 9])
    second = [*SYSTEM, 7, 8, 9, *first.tokens, 11, 12, 13]
    assert run(decoder, second) == generate(model, Letters(), [second], SETTINGS)
    assert prefixes.reused == len(SYSTEM) + 3 + len(first.tokens) - 1, "all but the last token, which nothing was read after"
    others = [[*SYSTEM, 99], [*SYSTEM[:20], 5, 6, 7, 8, 9, 10], [3], second, [*second[:-2], 77]]
    assert run(decoder, *others) == generate(model, Letters(), others, SETTINGS)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_logits_behind_a_kept_beginning_are_those_of_the_whole_text(family: str) -> None:
    model, prefixes = build(family), Prefixes()
    cache = RowCache(model)
    for prompt in (prompts()[5], SYSTEM):
        cache.add([prompt])
        prefixes.keep(prompt, None, cache.copy(len(prefixes._texts)))
    asked = [[*prompts()[5][:33], 8, 9], [*SYSTEM, 4], [5, 6], [*SYSTEM, 1, 2, 3]]
    got = RowCache(model).add(asked, beginnings=[prefixes.find(prompt, None) for prompt in asked])
    for prompt, logits in zip(asked, got, strict=True):
        whole = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)


def test_equal_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    settings = Decoding(max_new_tokens=6, temperature=1.0)
    alone = [generate(model, Letters(), [prompts()[1]], settings)[0]]
    counts = read(monkeypatch, model)
    answers = generate(model, Letters(), [prompts()[1], prompts()[3], prompts()[1], prompts()[1]], settings)
    assert counts == [2 * len(prompts()[1])], "two rows: one of each prompt"
    assert answers[0] == alone[0]
    assert len({answer.tokens for answer in answers}) == 4


def test_work_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    decoder = Decoder(model, Letters(), prefixes=Prefixes())
    run(decoder, [*SYSTEM, 7])
    counts = read(monkeypatch, model)
    run(decoder, [*SYSTEM, 8, 9], [*SYSTEM, 10, 11, 12])
    assert counts == [2 * 3], "two rows, as many tokens each as the longer rest has"


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    model = build("llama")
    one = Prefixes()
    run(Decoder(model, Letters(), prefixes=one), [*SYSTEM])
    prefixes = Prefixes(most_bytes=5 * one.size // 2)
    decoder = Decoder(model, Letters(), prefixes=prefixes)
    for first in range(100, 105):
        run(decoder, [first, *SYSTEM[1:]])
        assert prefixes.size <= 5 * one.size // 2
    assert prefixes.find([104, *SYSTEM[1:]], None)
    assert prefixes.find([103, *SYSTEM[1:]], None)
    assert not prefixes.find([102, *SYSTEM[1:]], None)


def test_what_one_owner_has_read_serves_no_other() -> None:
    prefixes, owner = Prefixes(), 0
    prefixes.keep(SYSTEM, owner, {})
    assert prefixes.find([*SYSTEM, 1], None) is None
    found = prefixes.find([*SYSTEM, 1], owner)
    assert found is not None
    assert found.length == len(SYSTEM)
    assert not prefixes.wants(SYSTEM[:20], owner)
    prefixes.forget(owner)
    assert prefixes.find([*SYSTEM, 1], owner) is None


def test_positions_that_depend_on_the_whole_length_share_nothing() -> None:
    model = build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0})
    assert not RowCache(model).shares
    prefixes = Prefixes()
    run(Decoder(model, Letters(), prefixes=prefixes), SYSTEM)
    assert prefixes.size == 0
