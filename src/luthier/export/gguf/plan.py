"""Which tensors a GGUF file gets from a model folder: name, shape, type, and how each is made when its turn comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from luthier.errors import UserError
from luthier.export.gguf.architectures import Family
from luthier.export.gguf.layouts import Cut, Layout, Stacked
from luthier.models.mixture import PIECES
from luthier.models.stored import StoredWeights

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType
    from transformers import PreTrainedConfig

Type = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: tuple[str, ...] = get_args(Type)
"""Types that weights are written in here; llama.cpp's own tool makes the others of them."""
BLOCK = 32
"""Numbers that share a scale in `q8_0`."""

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)\.weight")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")
_NOT_WEIGHTS = re.compile(r"(\.rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
_FULL = re.compile(r"(_norm(_2)?\.weight|ffn_gate_inp(_shexp)?\.weight|position_embd\.weight|\.bias)$")


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of a GGUF file.

    Attributes:
        name: in the file.
        keys: of the tensors in the folder that it is made of.
        layout: how.
        shape: of the result.
        type: of the result, as llama.cpp calls it.
    """

    name: str
    keys: tuple[str, ...]
    layout: Layout
    shape: tuple[int, ...]
    type: Type

    @property
    def raw(self) -> GGMLQuantizationType:
        """The type as the `gguf` package has it."""
        import gguf

        return gguf.GGMLQuantizationType[self.type.upper()]

    @property
    def size(self) -> int:
        """Bytes."""
        count = torch.Size(self.shape).numel()
        return count // BLOCK * (BLOCK + 2) if self.type == "q8_0" else count * {"f32": 4, "f16": 2, "bf16": 2}[self.type]

    def make(self, stored: StoredWeights) -> Tensor:
        """The tensor, in the type that the folder has it in."""
        return self.layout.to_gguf([stored.tensor(key) for key in self.keys])


def plan(stored: StoredWeights, config: PreTrainedConfig, family: Family, wanted: Type, where: str) -> list[Planned]:
    """All tensors of a model, in the order of its files.

    Args:
        stored: the folder's weights.
        config: of the model.
        family: how it is written.
        wanted: type of the matrices; vectors, norms and routers are float32, and rows that are no multiple of 32 are never `q8_0`.
        where: for messages.

    Raises:
        UserError: llama.cpp has no place for one of the tensors.
    """
    names = _names(family.architecture, config.num_hidden_layers)
    found = [_planned(entry, stored, names, wanted, where) for entry in _entries(stored, config, family)]
    if family.head and not any(each.name == "output.weight" for each in found):
        table = next(each for each in found if each.name == "token_embd.weight")
        found.append(Planned("output.weight", table.keys, table.layout, table.shape, table.type))
    return found


def gguf_name(key: str, config: PreTrainedConfig, family: Family) -> str | None:
    """What a tensor of a folder is called in a GGUF file; None where llama.cpp has no place for it."""
    return _named(key, _names(family.architecture, config.num_hidden_layers))


@cache
def _names(family: str, layers: int) -> Any:
    """The package's map of tensor names."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    return gguf.get_tensor_name_map(architecture, layers)


Entry = tuple[str, tuple[str, ...], Layout]
"""What is looked up, the keys, the layout."""


def _entries(stored: StoredWeights, config: PreTrainedConfig, family: Family) -> Iterator[Entry]:
    experts: dict[str, dict[int, str]] = {}
    for key in stored:
        if _NOT_WEIGHTS.search(key) or (key.endswith("lm_head.weight") and config.tie_word_embeddings):
            continue
        if (apart := _EXPERT.fullmatch(key)) is not None:
            experts.setdefault(f"{apart[1]}.{apart[3]}.weight", {})[int(apart[2])] = key
        elif (fused := _FUSED.fullmatch(key)) is not None:
            pieces = PIECES[fused[2]][0]
            for number, piece in enumerate(pieces):
                yield f"{fused[1]}.{piece}.weight", (key,), Cut(number, len(pieces))
        else:
            yield key, (key,), family.layout(key, config)
    for name, keys in experts.items():
        yield name, tuple(keys[number] for number in sorted(keys)), Stacked()


def _planned(entry: Entry, stored: StoredWeights, names: Any, wanted: Type, where: str) -> Planned:
    looked_up, keys, layout = entry
    name = _named(looked_up, names)
    if name is None:
        raise UserError(f"llama.cpp has no place for the tensor `{looked_up}`", where=where, hint="Serve the model with Luthier.")
    empty = [torch.empty(stored[key].shape, dtype=stored[key].dtype, device="meta") for key in keys]
    shape = tuple(layout.to_gguf(empty).shape)
    return Planned(name, keys, layout, shape, _type(name, shape, wanted))


def _named(key: str, names: Any) -> str | None:
    """The name in the file; models were saved with and without the name of their body in front."""
    plain = key.removeprefix("transformer.").removeprefix("model.")
    for form in (
        key,
        plain,
        f"transformer.{plain}",
        f"model.{plain}",
        key.replace(".mlp.experts.", ".block_sparse_moe.experts."),
    ):
        found = names.get_name(form, try_suffixes=(".weight", ".bias"))
        if found is not None:
            return str(found)
    return None


def _type(name: str, shape: tuple[int, ...], wanted: Type) -> Type:
    if len(shape) == 1 or _FULL.search(name):
        return "f32"
    return "f16" if wanted == "q8_0" and shape[-1] % BLOCK else wanted
