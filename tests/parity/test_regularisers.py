"""NEFTune and label smoothing are what TRL and transformers compute on the same batch, with the head that never holds full logits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.neftune import activate_neftune
from transformers.trainer_pt_utils import LabelSmoother

from luthier.data.batch import Batch, make_batch
from luthier.data.store import TokenStore
from luthier.models.methods import apply_method
from luthier.models.policy import Policy
from luthier.objectives import LIKELIHOOD, score
from luthier.recipe.schema import Full, LoRA
from tests.families import build
from tests.stores import build_store

SMOOTHING, ALPHA = 0.1, 5.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return build_store(tmp_path_factory.mktemp("rows") / "store", [24, 24, 24, 9, 17])


def rectangle(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and mask [S, L] as a trainer's collator pads them."""
    bounds = batch.cu_seqlens.tolist()
    shape = (len(bounds) - 1, batch.max_length)
    tokens, labels, mask = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        tokens[row, : end - begin], mask[row, : end - begin] = batch.tokens[begin:end], 1
        labels[row, : end - begin] = torch.where(batch.weight[begin:end] > 0, batch.tokens[begin:end], -100)
    return tokens, labels, mask


def ours(policy: Policy, batch: Batch, *, packing: bool, smoothing: float) -> Tensor:
    """The loss of a batch, and gradients in the parameters."""
    policy.model.zero_grad()
    loss = LIKELIHOOD(score(policy, batch, packing=packing, smoothing=smoothing), batch).total / batch.weight.sum()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", [LoRA(rank=4), Full()], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_label_smoothing_is_that_of_transformers(store: TokenStore, family: str, method: LoRA | Full, packing: bool) -> None:
    model = build(family)
    policy = Policy(model, apply_method(model, method, seed=0))
    batch = make_batch(store, [0, 1, 2, 3, 4])
    tokens, labels, mask = rectangle(batch)
    loss = LabelSmoother(SMOOTHING)(model(input_ids=tokens, attention_mask=mask, use_cache=False), labels, shift_labels=True)
    model.zero_grad()
    loss.backward()
    theirs = {name: p.grad.clone() for name, p in policy.trainable.parameters.items() if p.grad is not None}
    assert ours(policy, batch, packing=packing, smoothing=SMOOTHING).item() == pytest.approx(loss.item(), abs=1e-5)
    for name, gradient in theirs.items():
        found = policy.trainable.parameters[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def noisy(model: PreTrainedModel) -> Policy:
    return Policy(model, apply_method(model, Full(), seed=0), noise=ALPHA)


@pytest.mark.parametrize("packing", [True, False])
def test_neftune_is_that_of_transformers(store: TokenStore, packing: bool) -> None:
    """A packed row of one segment, and a rectangle of equal segments: there nobody's length is in question."""
    batch = make_batch(store, [0] if packing else [0, 1, 2])
    tokens, labels, _ = rectangle(batch)
    reference = build("llama").train().requires_grad_(True)
    activate_neftune(reference, ALPHA)
    torch.manual_seed(3)
    loss = reference(input_ids=tokens, labels=labels, use_cache=False).loss
    loss.backward()
    policy = noisy(build("llama"))
    policy.model.train()
    torch.manual_seed(3)
    assert ours(policy, batch, packing=packing, smoothing=0.0).item() == pytest.approx(loss.item(), abs=1e-5)
    expected = dict(reference.named_parameters())
    for name, parameter in policy.trainable.parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)
    quiet = ours(Policy(build("llama").requires_grad_(True)), batch, packing=packing, smoothing=0.0)
    assert abs(loss.item() - quiet.item()) > 1e-3, "the noise is there"


@pytest.mark.parametrize("packing", [True, False])
def test_noise_is_as_large_as_each_segment_asks_for(store: TokenStore, packing: bool) -> None:
    policy, batch = noisy(build("llama")), make_batch(store, [0, 3, 4])
    embedding, seen = policy.model.get_input_embeddings(), []
    embedding.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output - module.weight[inputs[0]])))
    policy.model.train()
    policy.hidden(batch, packing=packing)
    noise = dict.fromkeys((24, 9, 17), 0.0)
    ((tokens, added),) = seen
    for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        if packing:
            part = added[0, begin:end]
        else:
            (row,) = [row for row in range(len(tokens)) if torch.equal(tokens[row, : end - begin], batch.tokens[begin:end])]
            part = added[row, : end - begin]
        noise[end - begin] = part.abs().max().item()
    for length, largest in noise.items():
        assert largest == pytest.approx(ALPHA / math.sqrt(length * 64), rel=0.02)
    policy.model.eval()
    seen.clear()
    policy.hidden(batch, packing=packing)
    assert seen[0][1].abs().max() == 0.0, "none in evaluation"
