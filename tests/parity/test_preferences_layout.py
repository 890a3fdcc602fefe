"""How a batch of pairs or opinions is executed never changes what is learnt, also where a loss needs the whole of it first."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as spawned

from luthier.objectives import objective_of
from luthier.recipe.schema import BCO, CPO, DPO, KTO, ORPO, SimPO
from tests.preferences import assert_same, beside, drawn_of, learnt, pairs

STAGES: dict[str, DPO | ORPO | SimPO | CPO | KTO | BCO] = {
    "dpo": DPO(loss={"sigmoid": 1.0, "ipo": 0.1}, label_smoothing=0.1, sft_weight=0.5, ld_alpha=0.5),
    "aot": DPO(loss="aot"),
    "aot_unpaired": DPO(loss="aot_unpaired", ld_alpha=0.5),
    "orpo": ORPO(),
    "simpo": SimPO(sft_weight=0.5),
    "cpo": CPO(),
    "kto": KTO(beta=0.5, undesirable_weight=1.3),
    "apo_zero_unpaired": KTO(loss="apo_zero_unpaired"),
    "bco": BCO(beta=0.5),
}
ROWS, FAR = pairs(seed=1), 0.03
"""With this distance of the policy from its reference, KTO's estimate is above zero."""


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_execution_never_changes_what_is_learnt(name: str, family: str) -> None:
    stage = STAGES[name]
    drawn = drawn_of(ROWS, paired=stage.type not in ("kto", "bco"))
    models, objective = beside(family, distance=FAR), objective_of(stage)
    loss, gradients, told = learnt(*models, objective, drawn, micro=1, packing=False)
    assert all(told[metric] for metric in ("margin", "logprob_chosen"))
    assert told.get("zero", 0.0) > 0 or name not in ("kto", "bco") or family == "gpt2"  # whose estimate is below zero
    for micro, packing in ((10_000, True), (10_000, False), (70, True)):
        again, found, said = learnt(*models, objective, drawn, micro=micro, packing=packing)
        assert again == pytest.approx(loss, rel=1e-5)
        assert said == pytest.approx(told, rel=1e-4, abs=1e-5)
        assert_same(found, gradients)


def test_the_sorted_loss_has_the_gradient_of_the_sort() -> None:
    """AOT in parts is that of all values at once, differentiated through the sort."""
    stage, drawn = DPO(loss="aot_unpaired"), drawn_of(ROWS, paired=True)
    model, reference = beside("llama", distance=FAR)
    loss, gradients, _ = learnt(model, reference, objective_of(stage), drawn, micro=1)
    model.zero_grad()
    ratios = []
    for prompt, answer, _ in ROWS:
        tokens, targets = torch.tensor([prompt + answer]), torch.tensor(answer)
        said, known = (one(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for one in (model, reference))
        ratios.append((said - known.detach()).gather(-1, targets[:, None]).sum())
    margins = torch.stack(ratios[::2]).sort().values - torch.stack(ratios[1::2]).sort().values
    expected = -torch.nn.functional.logsigmoid(0.1 * margins).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def share(rank: int, folder: str, port: int) -> None:
    """One of two processes: its share of KTO's step."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    loss, gradients, _ = learnt(
        *beside("llama", distance=FAR), objective_of(STAGES["kto"]), drawn_of(ROWS, paired=False), micro=70
    )
    torch.save({"loss": loss, "gradients": gradients}, Path(folder) / f"{rank}.pt")


def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawned.spawn(share, args=(str(tmp_path), port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    loss, gradients, _ = learnt(*beside("llama", distance=FAR), objective_of(STAGES["kto"]), drawn_of(ROWS, paired=False))
    assert first["loss"] + second["loss"] == pytest.approx(loss, rel=1e-5)
    assert 0 < first["loss"] < loss
    assert_same({name: part + second["gradients"][name] for name, part in first["gradients"].items()}, gradients)
