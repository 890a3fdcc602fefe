"""The head descriptor gives the model's own logits, or is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.insert import insert_adapter
from luthier.models.head import describe, live
from luthier.models.policy import Policy
from tests.families import CONFIGS, VOCAB, build

TOKENS = torch.arange(5, 45)[None] * 11 % VOCAB


def both(model: PreTrainedModel, head) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        hidden = model.base_model(input_ids=TOKENS, use_cache=False).last_hidden_state
        return head.logits(hidden), model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_head_gives_the_model_s_logits(family: str, tied: bool) -> None:
    model = build(family, tie_word_embeddings=tied)
    head = describe(model)
    ours, theirs = both(model, head)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert head.note is None
    assert head.weight is model.get_output_embeddings().weight


def test_each_family_has_its_own_form() -> None:
    heads = {family: describe(build(family)) for family in ("llama", "gemma2", "granite", "cohere", "phi")}
    assert (heads["llama"].scale, heads["llama"].softcap, heads["llama"].bias) == (1.0, 0.0, None)
    assert heads["gemma2"].softcap == 5.0
    assert heads["granite"].scale == pytest.approx(1 / 3)
    assert heads["cohere"].scale == 0.25
    assert heads["phi"].bias is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_config_that_says_otherwise_is_overruled_aloud(dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    model.config.logits_scaling = 1.25
    head = describe(model)
    assert head.scale == 1.0
    assert head.note is not None
    assert "the plain head" in head.note


def test_an_unknown_multiplier_is_measured_aloud() -> None:
    model = build("granite")
    forward = model.forward

    def louder(*args, **kwargs):  # type: ignore[no-untyped-def]
        output = forward(*args, **kwargs)
        output.logits = output.logits * 6
        return output

    model.forward = louder
    head = describe(model)
    assert head.scale == pytest.approx(2.0, rel=1e-5)
    assert "measured" in (head.note or "")


def test_a_head_of_another_form_is_refused() -> None:
    model = build("llama")
    forward = model.forward

    def squared(*args, **kwargs):  # type: ignore[no-untyped-def]
        output = forward(*args, **kwargs)
        output.logits = output.logits.square()
        return output

    model.forward = squared
    with pytest.raises(UserError, match="does not know"):
        describe(model)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_on_the_head_is_part_of_it(dora: bool) -> None:
    model = build("llama")
    insert_adapter(model, AdapterConfig(rank=2, alpha=4, target=("lm_head",), dora=dora), seed=0)
    policy = Policy(model)
    torch.nn.init.normal_(model.lm_head.lora_B)
    ours, theirs = both(model, policy.head)
    assert torch.allclose(ours, theirs, atol=1e-4)
    policy.head.logits(torch.randn(3, 64)).sum().backward()
    assert model.lm_head.lora_A.grad is not None


def test_the_head_follows_a_module_trained_whole() -> None:
    model = build("gemma2")
    insert_adapter(model, AdapterConfig(modules_to_save=("lm_head",), target=("q_proj",)), seed=0)
    head = describe(model)
    assert head.weight.requires_grad
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    ours, theirs = both(model, live(model, head))
    assert torch.allclose(ours, theirs, atol=1e-5)
