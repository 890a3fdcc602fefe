"""After an export: read what was written back, ask it and its original the same, and say how far the answers are apart.

A written file is believed when it has answered. Two measures, on a text in two languages and a line of code:

* `logits`: the largest difference between the logits of the two, as a share of the largest logit. For files that keep every number;
* `perplexity`: exp of the mean loss, of which the two may differ by a share. For files that round.

Of adapters the updates of the weights are compared (`updates`), without any model.

The original is read first, then the result, so one model stands in memory at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.tokenizer import Tokenizer
from luthier.errors import UserError
from luthier.models.loading import load_as_stored

Measure = Literal["logits", "perplexity", "updates"]

TEXT = """A violin maker chooses the wood before anything else. Spruce for the belly, maple for the back, both cut when the sap is low.
制琴师先选木料：面板用云杉，背板用枫木。木头要放上许多年，声音才会稳定下来。1 + 1 = 2，😀 and so on.
def area(width, height):
    return width * height  # 面积
"""
"""What both are asked."""
TOKENS = 256
"""Of it, at most."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an export is from its original.

    Attributes:
        measure: what was compared.
        value: the difference, as a share.
        tolerance: how large it may be.
        reader: what read the result.
    """

    measure: Measure
    value: float
    tolerance: float
    reader: str

    @property
    def ok(self) -> bool:
        """Whether it is small enough; what is no number is not."""
        return self.value <= self.tolerance

    def __str__(self) -> str:
        amount = f"{self.value:.3%}" if self.measure == "perplexity" else f"{self.value:.2g}"
        bound = f"{self.tolerance:.2%}" if self.measure == "perplexity" else f"{self.tolerance:.3g}"
        verb = "differs" if self.measure == "perplexity" else "differ"
        return f"read back by {self.reader}: {self.measure} {verb} by {amount} (at most {bound})"

    def demand(self, where: str) -> None:
        """Stop if it is too large.

        Raises:
            UserError: it is.
        """
        if not self.ok:
            raise UserError(
                f"the result is not the model: {self}", where=where, hint="Nothing was kept. `--tolerance` allows more."
            )


def question(tokenizer: Tokenizer, rows: int) -> Tensor:
    """The text as tokens [T], without those that the model has no embeddings for."""
    ids = torch.as_tensor(tokenizer.encode(TEXT).ids.tolist())
    return ids[ids < rows][:TOKENS]


@torch.no_grad()
def answer(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits [T, V] of a model, float32 on the CPU."""
    logits: Tensor = model.eval()(tokens[None].to(model.device), use_cache=False).logits[0]
    return logits.float().cpu()


def answer_of(folder: Path, tokens: Tensor) -> Tensor:
    """Logits [T, V] of the model in a folder, computed in float32."""
    return answer(load_as_stored(folder).float(), tokens)


def difference(measure: Measure, expected: Tensor, found: Tensor, tokens: Tensor, tolerance: float, reader: str) -> Difference:
    """Compare two answers.

    Args:
        measure: what to compare.
        expected: logits [T, V] of the original.
        found: of the result; may have further columns, for tokens that only fill up.
        tokens: [T] that both were asked.
        tolerance: how large the difference may be.
        reader: what read the result.
    """
    found = found[:, : expected.shape[1]]
    if measure == "logits":
        value = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-9))
    else:
        value = abs(perplexity(found, tokens) / perplexity(expected, tokens) - 1)
    return Difference(measure, value if math.isfinite(value) else math.inf, tolerance, reader)


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """exp of the mean loss of each token behind those before it."""
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1], tokens[1:]).item())
