"""Rows of embeddings and head that are trained alone: what PEFT's trainable tokens compute, tied heads and new tokens included."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.format import WEIGHTS_FILE, write_adapter
from luthier.models.adapters.lora import without_adapters
from luthier.models.adapters.merge import merge
from luthier.models.adapters.tokens import make_room, token_layers
from luthier.models.head import describe, live
from luthier.models.methods import apply_method, load_adapter
from luthier.models.policy import Policy, save_model
from luthier.recipe.schema import LoRA
from tests.families import build
from tests.models.batches import ragged

ROWS = (7, 5, 200)
TOKENS = torch.tensor([[1, 7, 3, 200, 5, 9, 7, 250]])
FAMILIES = {"llama": False, "gemma2": True, "gpt2": True, "bloom": True, "granite": True, "phi": False, "qwen3": False}
"""Family → whether its head is tied to the embeddings."""


def built(family: str) -> PreTrainedModel:
    return build(family, tie_word_embeddings=FAMILIES[family])


def logits(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def shaken(model: Any, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def trained(family: str, rows: tuple[int, ...] = ROWS) -> PreTrainedModel:
    model = built(family)
    apply_method(model, LoRA(rank=2), seed=0, tokens=rows)
    return shaken(model)


def in_peft(base: PreTrainedModel, folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, str(folder), **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_those_rows_are_trained_and_the_start_changes_nothing(family: str) -> None:
    model, base = built(family), logits(built(family))
    found = apply_method(model, LoRA(rank=2), seed=0, tokens=ROWS)
    rows = [parameter for name, parameter in found.parameters.items() if name.endswith("trainable_tokens_delta")]
    assert len(rows) == (1 if FAMILIES[family] else 2)
    assert all(parameter.shape[0] == len(ROWS) for parameter in rows)
    assert torch.allclose(logits(model), base, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi"])  # PEFT leaves out the bias of Phi's head
def test_a_saved_adapter_gives_the_same_logits_in_plain_peft_and_merges(family: str, tmp_path: Path) -> None:
    model = trained(family)
    write_adapter(tmp_path, model)
    expected = logits(model)
    assert not torch.allclose(expected, logits(built(family)), atol=1e-2)
    assert torch.allclose(logits(in_peft(built(family), tmp_path)), expected, atol=1e-4)
    again = built(family)
    load_adapter(again, tmp_path)
    assert torch.allclose(logits(again), expected, atol=1e-5)
    with without_adapters(again):
        assert torch.allclose(logits(again), logits(built(family)), atol=1e-6)
    merged = merge(again)
    assert not token_layers(merged)
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    save_model(merged, tmp_path / "merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradients_are_those_of_peft(family: str, tmp_path: Path) -> None:
    model = trained(family)
    write_adapter(tmp_path, model)
    theirs = in_peft(built(family), tmp_path, is_trainable=True)
    for each in (model, theirs):
        each(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    expected = [p.grad for name, p in theirs.named_parameters() if "trainable_tokens_delta" in name]
    found = [p.grad for name, p in model.named_parameters() if name.endswith("trainable_tokens_delta")]
    assert len(found) == len(expected) > 0
    for ours, other in zip(found, expected, strict=True):
        assert torch.linalg.norm(ours - other) <= 1e-5 * torch.linalg.norm(other)


@pytest.mark.parametrize("indices", [[7, 9], {"embed_tokens": [7, 9]}, {"embed_tokens": [7, 9], "lm_head": [3]}])
def test_adapters_made_by_peft_load_with_the_same_logits(indices: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=indices, task_type="CAUSAL_LM")
        theirs = shaken(peft.get_peft_model(built("llama"), config)).eval()
        theirs.save_pretrained(tmp_path)
    ours = built("llama")
    load_adapter(ours, tmp_path)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    write_adapter(tmp_path / "again", ours)
    assert torch.allclose(logits(in_peft(built("llama"), tmp_path / "again")), logits(theirs), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_new_tokens_make_room_everywhere(family: str, tmp_path: Path) -> None:
    """Trained on a grown base; loaded on the original one by Luthier, and in PEFT after `resize_token_embeddings`."""
    rows, tokens = (256, 258), torch.tensor([[1, 256, 3, 258, 5]])
    model = trained(family, rows)
    assert model.get_output_embeddings().weight.shape[0] == model.config.vocab_size == 259
    write_adapter(tmp_path, model)
    assert max(tensor.shape[0] for key, tensor in load_file(tmp_path / WEIGHTS_FILE).items() if "token" in key) == 2
    again = built(family)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    base = built(family)
    base.resize_token_embeddings(259)
    known = torch.tensor([*range(257), 258])  # 257 is nobody's: its values are whatever a resize gives
    theirs = logits(in_peft(base, tmp_path), tokens)
    assert torch.allclose(theirs[..., known], logits(model, tokens)[..., known], atol=1e-4)


def test_new_rows_are_the_mean_of_the_old() -> None:
    model = built("llama")
    before = model.get_input_embeddings().weight.detach().clone()
    assert not make_room(model, 256)
    assert make_room(model, 260)
    assert torch.equal(model.get_input_embeddings().weight[:256], before)
    assert torch.allclose(model.get_input_embeddings().weight[256:], before.mean(0).expand(4, -1), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_taken_apart_gives_the_model_s_logits(family: str) -> None:
    model = trained(family)
    policy = Policy(model)
    batch = ragged([9, 14])
    hidden = policy.hidden(batch, packing=True)
    single = logits(model, batch.tokens[None, :9])
    assert torch.allclose(live(model, describe(model)).logits(hidden)[:9], single[0], atol=1e-3)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="has an adapter or is trained whole"):
        apply_method(built("llama"), LoRA(rank=2, modules_to_save=("embed_tokens",)), seed=0, tokens=(5,))
    with pytest.raises(UserError, match="has an adapter or is trained whole"):
        apply_method(built("llama"), LoRA(rank=2, target=("q_proj", "lm_head")), seed=0, tokens=(5,))
