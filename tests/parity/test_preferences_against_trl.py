"""Losses of pairs and opinions, and their gradients, are those of TRL's trainers on the same batch and weights.

Where TRL's formula differs from the paper's, or depends on how a batch is split, the part that can be compared is compared:

* label smoothing in `sigmoid` (conservative DPO): TRL 1.16 does not apply it; compared with the formula.
* the likelihood of the better answer (`sft_weight`): TRL takes one mean over the tokens of a device's batch, we take the mean of each
  answer and then of the pairs; both agree where all better answers are equally long.
* ORPO: TRL's likelihood covers the prompt too; both agree where the prompt is one token, which nothing predicts.
* KTO: TRL's estimate of the KL divergence is of one device's pass; here the pass is the batch. Which prompt gets which other answer is a
  matter of data: TRL takes the example before, we the one half a batch away; it is given ours.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from luthier.objectives import objective_of
from luthier.recipe.schema import BCO, CPO, DPO, KTO, ORPO, SimPO
from tests.preferences import Row, assert_same, beside, drawn_of, learnt, pairs

PROMPTED: list[Row] = pairs()
ALIKE: list[Row] = pairs(chosen=[11] * 5)
"""Better answers of one length."""
BARE: list[Row] = pairs(prompts=[1] * 5, chosen=[11] * 5)
"""The same behind prompts of one token."""

DPO_CASES: dict[str, tuple[DPO, dict[str, Any]]] = {
    "sigmoid": (DPO(), {}),
    "sigmoid_norm": (DPO(loss="sigmoid_norm", beta=2.0), {"beta": 2.0}),
    "hinge": (DPO(loss="hinge", beta=0.5), {"beta": 0.5}),
    "ipo": (DPO(loss="ipo"), {}),
    "robust": (DPO(loss="robust", label_smoothing=0.1), {"label_smoothing": 0.1}),
    "exo_pair": (DPO(loss="exo_pair", label_smoothing=0.1), {"label_smoothing": 0.1}),
    "discopop": (DPO(loss="discopop"), {}),
    "nca_pair": (DPO(loss="nca_pair"), {}),
    "bco_pair": (DPO(loss="bco_pair"), {}),
    "sppo_hard": (DPO(loss="sppo_hard"), {}),
    "apo_zero": (DPO(loss="apo_zero"), {}),
    "apo_down": (DPO(loss="apo_down"), {}),
    "aot": (DPO(loss="aot", label_smoothing=0.1), {"label_smoothing": 0.1}),
    "aot_unpaired": (DPO(loss="aot_unpaired", label_smoothing=0.1), {"label_smoothing": 0.1}),
    "length-desensitised": (DPO(ld_alpha=0.4), {"ld_alpha": 0.4}),
    "length-desensitised aot": (DPO(loss="aot", ld_alpha=0.4), {"ld_alpha": 0.4}),
    "forward kl": (DPO(divergence="forward_kl"), {"f_divergence_type": "forward_kl"}),
    "js": (DPO(loss="ipo", divergence="js"), {"f_divergence_type": "js_divergence"}),
    "alpha": (
        DPO(divergence="alpha", divergence_alpha=0.3),
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ),
    "mixed": (
        DPO(loss={"sigmoid": 0.8, "bco_pair": 0.2}, sft_weight=1.0),
        {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
}
PLAIN = {
    "beta": 0.1,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "loss_weights": [1.0],
}


@pytest.fixture(scope="module")
def trl() -> ModuleType:
    """Imported late, because TRL takes seconds."""
    return importlib.import_module("tests.parity.trl_trainers")


@pytest.fixture(scope="module")
def trainer(trl: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One trainer for all losses of pairs."""
    return trl.dpo_trainer(*beside("llama"), ALIKE, tmp_path_factory.mktemp("dpo"))


@pytest.mark.parametrize("name", DPO_CASES)
def test_pairs_beside_a_reference(trl: ModuleType, trainer: Any, name: str) -> None:
    stage, options = DPO_CASES[name]
    for key, value in (PLAIN | {"loss_types": list(stage.losses)} | options).items():
        setattr(trainer, key, value)
    their_loss, their_gradients = trl.theirs(trainer)
    loss, gradients, told = learnt(*beside("llama"), objective_of(stage), drawn_of(ALIKE, paired=True))
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert_same(gradients, their_gradients)
    if stage.ld_alpha == 1:
        logged = {key: values[-1] for key, values in trainer._metrics["eval"].items()}
        names = {"margin": "margins", "accuracy": "accuracies", "reward_chosen": "chosen", "reward_rejected": "rejected"}
        for ours, their_name in names.items():
            assert told[ours] == pytest.approx(logged[f"rewards/{their_name}"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2"])
def test_pairs_on_other_families(trl: ModuleType, family: str, tmp_path: Path) -> None:
    trainer = trl.dpo_trainer(*beside(family), PROMPTED, tmp_path)
    their_loss, their_gradients = trl.theirs(trainer)
    loss, gradients, _ = learnt(*beside(family), objective_of(DPO()), drawn_of(PROMPTED, paired=True))
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert_same(gradients, their_gradients)


def test_smoothing_is_the_papers() -> None:
    """Conservative DPO by its formula, from the rewards that are told."""
    row = drawn_of(PROMPTED[:2], paired=True)
    loss, _, told = learnt(*beside("llama"), objective_of(DPO(label_smoothing=0.2)), row)
    margin = torch.tensor(told["margin"])
    assert loss == pytest.approx(float(-0.8 * logsigmoid(margin) - 0.2 * logsigmoid(-margin)), rel=1e-6)


CPO_CASES: dict[str, tuple[CPO | SimPO, dict[str, Any]]] = {
    "cpo sigmoid": (CPO(label_smoothing=0.1), {"loss_type": "sigmoid", "label_smoothing": 0.1}),
    "cpo hinge": (CPO(loss="hinge", sft_weight=0.5), {"loss_type": "hinge", "cpo_alpha": 0.5}),
    "cpo ipo": (CPO(loss="ipo", sft_weight=0), {"loss_type": "ipo", "cpo_alpha": 0.0}),
    "simpo": (SimPO(), {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    "alphapo": (
        SimPO(alpha=0.25, gamma=0.3, sft_weight=0.5),
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.3, "alpha": 0.25, "cpo_alpha": 0.5},
    ),
}


@pytest.mark.parametrize("name", CPO_CASES)
def test_pairs_alone(trl: ModuleType, name: str, tmp_path: Path) -> None:
    stage, options = CPO_CASES[name]
    model, other = beside("llama")
    their_loss, their_gradients = trl.theirs(trl.reference_free("cpo", model, ALIKE, tmp_path, **options))
    loss, gradients, _ = learnt(beside("llama")[0], other, objective_of(stage), drawn_of(ALIKE, paired=True))
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert_same(gradients, their_gradients)


def test_odds_ratio(trl: ModuleType, tmp_path: Path) -> None:
    model, other = beside("llama")
    their_loss, their_gradients = trl.theirs(trl.reference_free("orpo", model, BARE, tmp_path, beta=0.3))
    loss, gradients, _ = learnt(beside("llama")[0], other, objective_of(ORPO(beta=0.3)), drawn_of(BARE, paired=True))
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert_same(gradients, their_gradients)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_opinions_beside_a_reference(trl: ModuleType, loss: str, tmp_path: Path) -> None:
    rows = pairs(seed=1)[:7]  # four liked, three not, and policy and reference far enough apart for an estimate above zero
    options = {"beta": 0.5, "desirable_weight": 0.75, "undesirable_weight": 1.2}
    trainer = trl.kto_trainer(*beside("llama", distance=0.03), rows, tmp_path, loss_type=loss, **options)
    their_loss, their_gradients = trl.theirs(trainer)
    objective = objective_of(KTO(loss=loss, **options))
    ours, gradients, told = learnt(*beside("llama", distance=0.03), objective, drawn_of(rows, paired=False))
    assert ours == pytest.approx(their_loss, rel=1e-5)
    assert_same(gradients, their_gradients)
    logged = {key: values[-1] for key, values in trainer._metrics["eval"].items()}
    assert told["zero"] == pytest.approx(0.5 * logged["kl"], rel=1e-4)
    assert (told["zero"] > 0) == (loss == "kto")
    for kind in ("chosen", "rejected"):
        assert told[f"reward_{kind}"] == pytest.approx(logged[f"rewards/{kind}"], rel=1e-4)
        assert told[f"logprob_{kind}"] == pytest.approx(logged[f"logps/{kind}"], rel=1e-4)
    assert told["margin"] == pytest.approx(logged["rewards/margins"], rel=1e-4)


def test_binary_classifier() -> None:
    """BCO, which TRL no longer has, by its formula from single answers' rewards."""
    rows, objective = PROMPTED[:7], objective_of(BCO(beta=0.5, undesirable_weight=1.3))
    alone = [learnt(*beside("llama"), objective, drawn_of([row], paired=False))[2] for row in rows]
    reward = torch.tensor([one["reward_chosen"] + one["reward_rejected"] for one in alone])  # the other kind's is 0
    liked = torch.tensor([label for _, _, label in rows]) == 1
    shift = (reward[liked].mean() + reward[~liked].mean()) / 2
    expected = torch.where(liked, -logsigmoid(reward - shift), -1.3 * logsigmoid(shift - reward)).mean()
    loss, _, told = learnt(*beside("llama"), objective, drawn_of(rows, paired=False))
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert told["zero"] == pytest.approx(float(shift), rel=1e-4)
