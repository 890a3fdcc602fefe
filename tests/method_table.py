"""The table of methods and families: its rows, its columns, and what every cell must do.

Three steps lower the loss; what was saved is loaded by plain PEFT (an adapter) or plain transformers (a model), and gives the same
logits. A cell that cannot work is told in one line, and `docs/_reference/methods.yaml` holds that line; the table in the docs is made of
that file.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.data.batch import Batch
from luthier.engine.optim import Optimizer
from luthier.models.adapters.format import is_adapter
from luthier.models.methods import apply_method
from luthier.models.policy import Policy
from luthier.objectives import LIKELIHOOD, score
from luthier.recipe.schema import Method, Train
from tests.families import build
from tests.models.batches import ragged

FILE = Path(__file__).resolve().parents[1] / "docs/_reference/methods.yaml"
TABLE: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
METHODS: dict[str, Method] = {row["name"]: TypeAdapter(Method).validate_python(row["method"]) for row in TABLE["methods"]}
FAMILIES: dict[str, str] = TABLE["families"]
CELLS = [(method, family) for method in METHODS for family in FAMILIES]
LENGTHS = (12, 7, 19, 3)


def refusal(method: str, family: str) -> str | None:
    """A part of the error message of a cell that cannot work."""
    return next((row["error"] for row in TABLE["cannot"] if method in row["methods"] and family in row["families"]), None)


def method_of(method: str, family: str) -> Method:
    """The method's section in a cell; of a cell that works in part, the part."""
    row = next((row for row in TABLE["partly"] if method in row["methods"] and family in row["families"]), None)
    whole = METHODS[method]
    return type(whole).model_validate(whole.model_dump() | row["change"]) if row else whole


def loss_of(policy: Policy, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the batch's supervised tokens."""
    return LIKELIHOOD(score(policy, batch, packing=True), batch).total / batch.weight.sum()


def learn(policy: Policy, batch: Batch, *, steps: int = 3, rate: float = 1e-2) -> tuple[Optimizer, list[float]]:
    """Some steps on one batch; the optimizer, and the loss before each step and after the last."""
    optimizer = Optimizer(policy.trainable.parameters, Train(learning_rate=rate))
    losses = []
    for step in range(steps):
        optimizer.begin(step)
        loss = loss_of(policy, batch)
        loss.backward()
        optimizer.step(loss.detach(), rate)
        losses.append(loss.item())
    with torch.no_grad():
        return optimizer, [*losses, loss_of(policy, batch).item()]


def in_plain(family: str, folder: Path) -> Any:
    """What was saved, loaded by the library that others load it with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_adapter(folder):
            return peft.PeftModel.from_pretrained(build(family), str(folder)).eval()
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits_apart(model: Any, batch: Batch) -> Tensor:
    """Logits [T, V] of each segment alone, end to end; of a learnt prefix nothing is kept."""
    tokens = batch.tokens.split(torch.diff(batch.cu_seqlens).tolist())
    return torch.cat(
        [model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).logits[0, -len(row) :] for row in tokens]
    )


def check_cell(method: str, family: str, folder: Path) -> None:
    """What the table promises of a cell that works."""
    model = build(family)
    policy = Policy(model, apply_method(model, method_of(method, family), seed=0))
    batch = ragged(LENGTHS)
    optimizer, losses = learn(policy, batch)
    assert all(after < before for before, after in pairwise(losses)), losses
    policy.save(folder, optimizer.weights())
    with torch.no_grad():
        ours = policy.head.logits(policy.hidden(batch, packing=True))
    torch.testing.assert_close(logits_apart(in_plain(family, folder), batch), ours, atol=1e-4, rtol=0)
