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

FIXTURES = ("chatglm2", "chatglm3", "baichuan1_13b", "baichuan2_7b", "baichuan2_13b", "internlm1", "xverse")
"""Folders below `fixtures/legacy` that are converted."""


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


def inputs(values: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, input ids, attention mask, logits) of each recorded forward pass without position ids."""
    for name in sorted({key.rpartition(".")[0] for key in values if key.endswith(".logits")}):
        if f"{name}.input_ids" in values:
            ids = values[f"{name}.input_ids"]
            yield name, ids, values.get(f"{name}.attention_mask", torch.ones_like(ids)), values[f"{name}.logits"]


def loss_of(model: PreTrainedModel, values: dict[str, Tensor]) -> Tensor:
    """The next-token loss of the recorded batch."""
    logits = model(values["loss.input_ids"], values["loss.attention_mask"]).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), values["loss.labels"][:, 1:].flatten(), ignore_index=-100)


def native_parameters(model: PreTrainedModel, old_name: str) -> list[Tensor]:
    """The parameters that an original one has become."""
    place = place_of(old_name, rules_of(model))
    assert place is not None, old_name
    return [model.get_parameter(fill(pattern, place.stars)) for pattern in place.rule.news]
