r"""How a weight lies in a model folder, and how llama.cpp wants it: small rearrangements, each with its way back.

transformers and llama.cpp compute the same with the numbers in another order:

| layout | what differs | where |
|---|---|---|
| `Same` | nothing | most weights |
| `Transposed` | [in, out] against [out, in] | GPT-2's `Conv1D` |
| `Paired` | a rotation turns (i, i + d/2) in transformers, (2i, 2i + 1) in llama.cpp, so rows of a head change places | q and k of Llama |
| `Shifted` | a norm multiplies with 1 + w in transformers, with w in llama.cpp | Gemma |
| `HeadsApart` | per head q, k, v; against all q, all k, all v | BLOOM |
| `GroupsApart` | per group its queries, then k, v; against all q, all k, all v | Falcon |
| `Flat` | a matrix of one row; against a vector | gates of shared experts |
| `Stacked` | a tensor for each expert; against all experts in one | Mixtral, Qwen-MoE |
| `Cut` | gate and up of all experts in one; against one for each | files with fused experts |

`to_gguf` and `from_gguf` are exact inverses of each other (but for the rounding of `Shifted`), so that a written file can be turned
back into a model folder and compared. They work on tensors of the `meta` device too, which is how shapes are known before anything is
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """A rearrangement between one or more tensors of a folder and one of a GGUF file."""

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor of the GGUF file."""

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of the folder."""


@dataclass(frozen=True, slots=True)
class Same:
    """As it is."""

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """The only one."""
        return tensors[0]

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """The same one."""
        return [tensor]


@dataclass(frozen=True, slots=True)
class Transposed:
    """Rows for columns."""

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """[in, out] → [out, in]."""
        return tensors[0].T

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """[out, in] → [in, out]."""
        return [tensor.T]


@dataclass(frozen=True, slots=True)
class Flat:
    """One row → a vector."""

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """[1, in] → [in]."""
        return tensors[0][0]

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """[in] → [1, in]."""
        return [tensor[None]]


@dataclass(frozen=True, slots=True)
class Paired:
    """The rows of each head: halves → pairs.

    Attributes:
        heads: how many heads the rows make up.
    """

    heads: int

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """[heads · d, …] with the two halves of a head turned into pairs."""
        weight = tensors[0]
        return weight.reshape(self.heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """Pairs turned into halves."""
        return [tensor.reshape(self.heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)]


@dataclass(frozen=True, slots=True)
class Shifted:
    """One more."""

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """1 + w, in float32."""
        return tensors[0].float() + 1

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """Less 1."""
        return [tensor - 1]


@dataclass(frozen=True, slots=True)
class HeadsApart:
    """q, k, v of each head → all q, all k, all v."""

    heads: int

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """[heads · 3 · d, …] → [3 · heads · d, …]."""
        return self._swapped(tensors[0], self.heads, 3)

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """[3 · heads · d, …] → [heads · 3 · d, …]."""
        return [self._swapped(tensor, 3, self.heads)]

    @staticmethod
    def _swapped(weight: Tensor, outer: int, inner: int) -> Tensor:
        return weight.reshape(outer, inner, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


@dataclass(frozen=True, slots=True)
class GroupsApart:
    """The queries of each group, then its k and v → all q, all k, all v."""

    heads: int
    groups: int

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """[groups · (heads / groups + 2) · d, …] → [(heads + 2 groups) · d, …]."""
        weight = tensors[0]
        split = weight.reshape(self.groups, self.heads // self.groups + 2, -1, *weight.shape[1:])
        parts = (split[:, :-2], split[:, -2:-1], split[:, -1:])
        return torch.cat([part.reshape(-1, *weight.shape[1:]) for part in parts])

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """All q, all k, all v → the groups."""
        head = len(tensor) // (self.heads + 2 * self.groups)
        parts = tensor.split([self.heads * head, self.groups * head, self.groups * head])
        return [torch.cat([part.reshape(self.groups, -1, *tensor.shape[1:]) for part in parts], 1).reshape(tensor.shape)]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Experts of their own → one tensor with an axis for them in front."""

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """E tensors [out, in] → [E, out, in]."""
        return torch.stack(list(tensors))

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """[E, out, in] → E tensors."""
        return list(tensor.unbind())


@dataclass(frozen=True, slots=True)
class Cut:
    """One of several equal parts of the outputs of all experts.

    Attributes:
        part: which one.
        parts: of how many.
    """

    part: int
    parts: int

    def to_gguf(self, tensors: Sequence[Tensor]) -> Tensor:
        """[E, parts · out, in] → [E, out, in]."""
        return tensors[0].chunk(self.parts, dim=1)[self.part]

    def from_gguf(self, tensor: Tensor) -> list[Tensor]:
        """The part itself, [E, out, in]; parts of one tensor are put together again by `write.unpack`."""
        return [tensor]
