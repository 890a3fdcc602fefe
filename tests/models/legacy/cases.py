"""The shared fixtures of old checkpoints: which there are, and what is read from them. A family's tests begin with a name in `FIXTURES`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from luthier.models.legacy.mapping import fill, place_of
from luthier.models.legacy.names import rules_of

FIXTURES = (
    "chatglm2", "chatglm3", "baichuan1_13b", "baichuan2_7b", "baichuan2_13b", "internlm1", "internlm2", "qwen1", "xverse", "deepseek_moe",
    "yuan2",
)  # fmt: skip
"""Folders below `fixtures/legacy` that are converted."""
BEYOND = {"qwen1": "long"}
"""Recorded passes that no native class reproduces: Qwen's stretched positions beyond its context, when it answers."""


def fixture(shared: Path, name: str) -> Path:
    """The old checkpoint."""
    return shared / "fixtures" / "legacy" / name


def copy_of(folder: Path, out: Path) -> Path:
    """A checkpoint that a test may change."""
    out.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / file, out / file)
    return out


def expected(folder: Path) -> dict[str, Tensor]:
    """What the original code computed."""
    return load_file(folder / "expected.safetensors")


def inputs(values: dict[str, Tensor], skip: str | None = None) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, input ids, attention mask, logits) of each recorded forward pass without position ids."""
    for name in sorted({key.rpartition(".")[0] for key in values if key.endswith(".logits")}):
        if f"{name}.input_ids" in values and name != skip:
            ids = values[f"{name}.input_ids"]
            yield name, ids, values.get(f"{name}.attention_mask", torch.ones_like(ids)), values[f"{name}.logits"]


def loss_of(model: PreTrainedModel, values: dict[str, Tensor]) -> Tensor:
    """The next-token loss of the recorded batch."""
    logits = model(values["loss.input_ids"], values["loss.attention_mask"]).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), values["loss.labels"][:, 1:].flatten(), ignore_index=-100)


def original_gradient(model: PreTrainedModel, old_name: str) -> Tensor:
    """The gradient of an original parameter, taken from those of the parameters that it has become."""
    place = place_of(old_name, rules_of(model))
    assert place is not None, old_name
    parts = [model.get_parameter(fill(pattern, place.stars)).grad for pattern in place.rule.news]
    olds = [fill(pattern, place.stars) for pattern in place.rule.olds]
    return place.rule.change.back([part for part in parts if part is not None])[olds.index(old_name)]
