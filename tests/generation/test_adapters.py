"""Rows of one batch are answered each by its own adapter, as if alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier import UserError
from luthier.generation.adapters import Adapters, Mix
from luthier.generation.decode import Answer, Decoder, Request, generate
from luthier.generation.prefix import Prefixes
from luthier.generation.sampling import Decoding
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.methods import load_adapter
from tests.families import build
from tests.generation.test_decode import Letters, prompts

SETTINGS = Decoding(max_new_tokens=8)


def write(folder: Path, family: str, seed: int, config: AdapterConfig, **fields: object) -> Path:
    """An adapter that changes the model's answers."""
    model = build(family, **fields)
    insert_adapter(model, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.requires_grad and "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
    write_adapter(folder, model)
    return folder


def alone(family: str, folder: Path | None, prompt: list[int]) -> Answer:
    model = build(family)
    if folder is not None:
        load_adapter(model, folder)
    return generate(model, Letters(), [prompt], SETTINGS)[0]


def together(decoder: Decoder, requests: list[Request]) -> list[Answer]:
    for request in requests:
        decoder.submit(request)
    answers = {piece.request: piece.answer for piece in decoder.run() if piece.answer}
    return [answers[request] for request in requests]


def test_sixty_four_adapters_and_the_base_in_one_batch(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / str(n), "llama", n, AdapterConfig(rank=2 + n % 4, alpha=8, rslora=n % 2 == 1, target="all-linear"))
        for n in range(64)
    ]
    model = build("llama")
    adapters = Adapters(model)
    for folder in folders:
        adapters.load(folder.name, folder)
    assert len(adapters.names) == 64
    prompt = prompts()[3]
    decoder = Decoder(model, Letters(), slots=80, adapters=adapters)
    requests = [Request(prompt, SETTINGS, adapter=name) for name in (*adapters.names, None, None)]
    answers = together(decoder, requests)
    assert answers == [alone("llama", folder, prompt) for folder in (*folders, None, None)]
    assert len({answer.tokens for answer in answers}) > 32


@pytest.mark.parametrize("family", ["gpt2", "bloom", "qwen3"])
def test_other_layers_targets_and_dora(family: str, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", family, 1, AdapterConfig(rank=4, alpha=8, target="all-linear"))
    dora = write(tmp_path / "dora", family, 2, AdapterConfig(rank=3, alpha=8, target="all-linear", dora=True))
    model = build(family)
    adapters = Adapters(model)
    for folder in (plain, dora):
        adapters.load(folder.name, folder)
    asked = [(prompt, name) for prompt in prompts()[:4] for name in ("plain", None, "dora")]
    answers = together(
        Decoder(model, Letters(), adapters=adapters), [Request(prompt, SETTINGS, adapter=name) for prompt, name in asked]
    )
    folders = {"plain": plain, "dora": dora, None: None}
    assert answers == [alone(family, folders[name], prompt) for prompt, name in asked]


def test_rows_of_the_base_stay_what_they_are_to_the_bit(tmp_path: Path) -> None:
    model = build("llama")
    adapters = Adapters(model)
    adapters.load("one", write(tmp_path, "llama", 1, AdapterConfig(rank=4, alpha=8)))
    tokens = torch.tensor([prompts()[1]] * 3)

    @torch.no_grad()
    def logits(names: list[str | None]) -> Tensor:
        with adapters.answering(Mix([adapters.find(name) if name else None for name in names])):
            return model(tokens, use_cache=False).logits

    bare, mixed = logits([None] * 3), logits([None, "one", None])
    assert torch.equal(bare[[0, 2]], mixed[[0, 2]])
    assert (bare[1] - mixed[1]).abs().max() > 0.1


def test_adapters_come_and_go_while_others_answer(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(n), "llama", n, AdapterConfig(rank=4, alpha=8)) for n in range(2)]
    prompt = prompts()[3]
    model = build("llama")
    adapters, prefixes = Adapters(model), Prefixes()
    decoder = Decoder(model, Letters(), adapters=adapters, prefixes=prefixes)
    adapters.load("it", folders[0])
    first = Request(prompt, SETTINGS, adapter="it")
    decoder.submit(first)
    begun = [decoder.step() for _ in range(3)]
    assert all(not pieces[0].answer for pieces in begun)
    adapters.unload("it")
    with pytest.raises(UserError, match="no adapter `it` is loaded"):
        decoder.submit(replace(first))
    adapters.load("it", folders[1])  # the same name, another adapter: it must not find what the first one has read
    answers = together(decoder, [Request(prompt, SETTINGS, adapter="it"), Request(prompt, SETTINGS)])
    assert answers == [alone("llama", folders[1], prompt), alone("llama", None, prompt)]


def test_the_first_answer_is_ended_by_the_adapter_that_began_it(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", 5, AdapterConfig(rank=4, alpha=8))
    model = build("llama")
    adapters = Adapters(model)
    adapters.load("it", folder)
    decoder = Decoder(model, Letters(), adapters=adapters)
    request = Request(prompts()[3], SETTINGS, adapter="it")
    decoder.submit(request)
    decoder.step()
    adapters.unload("it")
    assert together(decoder, []) == []
    decoder.submit(Request(prompts()[3], SETTINGS))
    answers = [piece.answer for piece in decoder.run() if piece.answer]
    assert answers == [alone("llama", None, prompts()[3])]


def test_a_quantised_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = write(tmp_path, "llama", 1, AdapterConfig(rank=4, alpha=8))
    with_it, mixed = quantised(), quantised()
    load_adapter(with_it, folder)
    adapters = Adapters(mixed)
    adapters.load("one", folder)
    requests = [Request(prompt, SETTINGS, adapter=name) for prompt in prompts()[:3] for name in ("one", None)]
    answers = together(Decoder(mixed, Letters(), adapters=adapters), requests)
    assert answers[::2] == [generate(with_it, Letters(), [prompt], SETTINGS)[0] for prompt in prompts()[:3]]
    assert answers[1::2] == [generate(quantised(), Letters(), [prompt], SETTINGS)[0] for prompt in prompts()[:3]]


def quantised() -> PreTrainedModel:
    """The small Llama with its linear layers in four bits."""
    from bitsandbytes.nn import Linear4bit

    from luthier.models.adapters.lora import replace_module

    model = build("llama")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and "lm_head" not in name:
            packed = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            packed.load_state_dict({"weight": layer.weight.data})
            replace_module(model, name, packed.to("cpu"))
    return model


def test_mistakes_are_told(tmp_path: Path) -> None:
    model = build("llama")
    adapters = Adapters(model)
    whole = write(tmp_path / "whole", "llama", 1, AdapterConfig(rank=4, alpha=8, modules_to_save=("lm_head",)))
    with pytest.raises(UserError, match="trains modules or tokens whole cannot share a batch"):
        adapters.load("whole", whole)
    other = write(tmp_path / "other", "qwen3", 1, AdapterConfig(rank=4, alpha=8, target=("q_proj",)), head_dim=32)
    with pytest.raises(UserError, match="another shape"):
        adapters.load("other", other)
    with pytest.raises(UserError, match="no adapter here"):
        adapters.load("none", tmp_path / "none")
    fitting = write(tmp_path / "fitting", "llama", 1, AdapterConfig(rank=4, alpha=8))
    adapters.load("fitting", fitting)
    with pytest.raises(UserError, match="loaded already"):
        adapters.load("fitting", fitting)
    with pytest.raises(UserError, match="fitting"):
        adapters.unload("fiting")
    load_adapter(model, fitting)
    with pytest.raises(UserError, match="carries an adapter"):
        adapters.load("second", fitting)
