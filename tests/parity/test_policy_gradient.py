"""GRPO, its relatives and RLOO give the loss and the gradients of TRL's trainers on the same recorded rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import Drawn
from luthier.data.store import TokenStore
from luthier.models.policy import Policy
from luthier.objectives import score
from luthier.objectives.grpo import Surrogate
from tests.families import VOCAB, build, save
from tests.parity.test_reference import assert_same
from tests.stores import build_store

LENGTHS, PROMPTS = [37, 12, 50, 8, 23, 30], 0.6
LONGEST = 40


@dataclass(frozen=True)
class Recorded:
    """Answers with what the sampler, the old policy and the reference said of them; token columns lie over the store's tokens."""

    store: TokenStore
    advantage: np.ndarray
    old: np.ndarray
    reference: np.ndarray

    @property
    def drawn(self) -> Drawn:
        """All of it as one global batch, each answer a unit."""
        rows = np.arange(len(self.store))
        columns = {
            "old_logprob": self.old,
            "reference": self.reference,
            "advantage": np.repeat(self.advantage, self.store.lengths),
        }
        return Drawn(self.store, rows, rows << 32 | rows, len(rows), {k: v.astype(np.float32) for k, v in columns.items()})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    store = build_store(tmp_path_factory.mktemp("rows") / "store", LENGTHS, vocabulary=VOCAB, supervised=PROMPTS)
    generator = np.random.default_rng(3)
    model = build("llama")
    present = np.zeros(len(store.tokens))
    for index in range(len(store)):
        tokens = torch.from_numpy(np.array(store.segment(index)[0], np.int64))
        with torch.no_grad():
            said = model(tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        present[store.offsets[index] + 1 : store.offsets[index + 1]] = said.numpy()
    old, reference = (present + generator.normal(0, 0.3, len(present)) for _ in range(2))
    return Recorded(store, generator.normal(size=len(store)), old, reference)


def ours(
    model: PreTrainedModel, recorded: Recorded, loss: Surrogate, *, passes: int, temperature: float = 1.0
) -> tuple[float, dict]:
    """Loss and gradients, the global batch cut into so many passes."""
    model.zero_grad()
    policy = Policy(model)
    policy.temperature = temperature
    drawn, total = recorded.drawn, 0.0
    divisor = len(drawn.segments) if loss.denominator == "examples" else float(recorded.store.weight.sum())
    for places in np.array_split(np.arange(len(drawn.segments)), passes):
        batch = drawn.batch(places)
        scores = score(policy, batch, packing=True)
        scores = type(scores)(scores.logprob, scores.top1, scores.weight, None, batch.columns["reference"])
        part = loss(scores, batch).total / divisor
        part.backward()
        total += part.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def padded(recorded: Recorded) -> dict[str, Tensor]:
    """The same as TRL's trainers take it: prompts padded to the left, completions to the right."""
    store = recorded.store
    prompts = [int((store.segment(i)[1] == 0).sum()) for i in range(len(store))]
    answers = (store.lengths - prompts).tolist()
    widest, longest = max(prompts), max(answers)
    tensors = {name: torch.zeros(len(store), widest, dtype=torch.int64) for name in ("prompt_ids", "prompt_mask")}
    tensors |= {name: torch.zeros(len(store), longest, dtype=torch.int64) for name in ("completion_ids", "completion_mask")}
    tensors |= {name: torch.zeros(len(store), longest) for name in ("old_per_token_logps", "ref_per_token_logps")}
    for i, (before, after) in enumerate(zip(prompts, answers, strict=True)):
        tokens = torch.from_numpy(np.array(store.segment(i)[0], np.int64))
        tensors["prompt_ids"][i, widest - before :], tensors["prompt_mask"][i, widest - before :] = tokens[:before], 1
        tensors["completion_ids"][i, :after], tensors["completion_mask"][i, :after] = tokens[before:], 1
        span = slice(int(store.offsets[i]) + before, int(store.offsets[i + 1]))
        tensors["old_per_token_logps"][i, :after] = torch.from_numpy(recorded.old[span])
        tensors["ref_per_token_logps"][i, :after] = torch.from_numpy(recorded.reference[span])
    tensors["advantages"] = torch.from_numpy(recorded.advantage).float()
    tensors["num_items_in_batch"] = tensors["completion_mask"].sum()
    tensors["old_logps"] = (tensors["old_per_token_logps"] * tensors["completion_mask"]).sum(1)
    return tensors


@pytest.fixture
def theirs(recorded: Recorded, tmp_path: Path) -> Callable[..., tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of TRL's own `_compute_loss`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from tests.parity.tokenizers import plain_tokenizer

    def loss(**settings: Any) -> tuple[float, dict[str, Tensor]]:
        alone = settings.pop("trainer", "grpo") == "rloo"
        config = (RLOOConfig if alone else GRPOConfig)(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=LONGEST,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            **settings,
        )
        model = build("llama").requires_grad_(True)
        model.config._name_or_path = str(
            save("llama", tmp_path / "reference")
        )  # where a reference is made from, which is recorded here
        trainer = (RLOOTrainer if alone else GRPOTrainer)(
            model=model,
            args=config,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_list([{"prompt": "w5 w6"}] * 4),
            processing_class=plain_tokenizer(tmp_path, VOCAB),
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        found = trainer._compute_loss(trainer.model, padded(recorded))
        found.backward()
        return found.item(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    return loss


CASES: dict[str, tuple[Surrogate, dict[str, Any]]] = {
    "grpo": (Surrogate(beta=0.04), {"loss_type": "grpo", "beta": 0.04}),
    "k3": (Surrogate(beta=0.1, kl_weighted=False), {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}),
    "dr_grpo": (Surrogate(aggregate="constant", longest=LONGEST), {"loss_type": "dr_grpo"}),
    "dapo": (Surrogate(aggregate="token", clip_high=0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "ceiling": (Surrogate(clip_ceiling=1.5, beta=0.1), {"loss_type": "grpo", "delta": 1.5, "beta": 0.1}),
    "gspo": (
        Surrogate(ratio="sequence", clip_low=3e-2, clip_high=4e-2),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2, "epsilon_high": 4e-2},
    ),
    "rloo": (Surrogate(ratio="trajectory", clip_low=0.5, clip_high=0.5), {"trainer": "rloo", "epsilon": 0.5, "beta": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_trl(recorded: Recorded, theirs: Callable[..., Any], name: str) -> None:
    settings, config = CASES[name]
    expected, gradients = theirs(**config)
    for passes in (1, 3):
        found, mine = ours(build("llama").requires_grad_(True), recorded, settings, passes=passes)
        assert found == pytest.approx(expected, rel=1e-5)
        assert_same(mine, gradients)


def test_a_temperature_is_that_of_trl(recorded: Recorded, theirs: Callable[..., Any]) -> None:
    expected, gradients = theirs(loss_type="grpo", temperature=0.7)
    found, mine = ours(build("llama").requires_grad_(True), recorded, Surrogate(), passes=2, temperature=0.7)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same(mine, gradients)
