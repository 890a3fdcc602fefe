"""After a merge: the base with its adapter beside it, and the folder that was written, are asked the same.

Both are computed in float32, one after the other. Merging needs the memory of a tensor and this needs that of the model, so where the
model would not fit nothing is compared, and that is said.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from luthier.data.tokenizer import load_tokenizer
from luthier.export.check import Difference, Measure, answer, answer_of, difference, question
from luthier.models.hub import fetch
from luthier.models.loading import load_model, read_config
from luthier.models.methods import load_adapter
from luthier.models.score_head import is_scorer
from luthier.models.scoring import scores
from luthier.models.source import find_source
from luthier.models.stored import StoredWeights

EXACT, ROUNDED = 1e-3, 0.02
"""How far a merge in float32 may be, as a share of the largest logit, and one in sixteen bits, in perplexity."""
ROOM = 2.5
"""Memory that is asked for, in multiples of the model in float32."""


def compared(
    name: str | Path, folder: Path, *, adapter: str | Path | None = None, checkpoint: int | None = None
) -> Difference | None:
    """How far a merged folder is from base and adapter; None where that is not measured: a model that scores, or one too large.

    Args:
        name: what was merged.
        folder: what was written, in the architecture's own names.
        adapter: an adapter for a model.
        checkpoint: for a run, the step of a checkpoint.
    """
    source = find_source(name, adapter=adapter, checkpoint=checkpoint)
    stored = StoredWeights(folder)
    numbers = sum(torch.Size(stored[key].shape).numel() for key in stored)
    if scores(source) or ROOM * 4 * numbers > psutil.virtual_memory().available:
        return None
    base = source.base.model_copy(update={"quantization": None, "attention": "auto"})
    if getattr(read_config(fetch(base.path, hub=base.hub, revision=base.revision)), "quantization_config", None) is not None:
        return None
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    if is_scorer(model):
        return None
    if source.adapter is not None:
        load_adapter(model, source.adapter)
    tokenizer = load_tokenizer(folder)
    tokens = question(tokenizer, model.config.get_text_config().vocab_size)
    expected = answer(model, tokens)
    del model
    exact = all(stored[key].dtype is torch.float32 for key in stored)
    measure: Measure = "logits" if exact else "perplexity"
    return difference(measure, expected, answer_of(folder, tokens), tokens, EXACT if exact else ROUNDED, "transformers")
