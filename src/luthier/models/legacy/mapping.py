"""How the tensors of an old checkpoint lie in a native one: rules that are read in both directions.

A rule pairs names under which tensors are stored in an old checkpoint with the names they have in the native class:

    Rule(old="transformer.encoder.layers.*.self_attention.query_key_value.*",
         new=("model.layers.*.self_attn.q_proj.*", "model.layers.*.self_attn.k_proj.*", "model.layers.*.self_attn.v_proj.*"),
         change=Rows((4096, 256, 256)))

Each `*` stands for one part of a dotted name (a layer number; `weight` or `bias`), the same in every name of the rule. `change` says
what happens to the numbers: nothing, or a permutation of rows that is taken back exactly. So one list of rules converts a checkpoint,
writes it back under its original names, and carries over what names its modules (LoRA targets, the tensors of old adapters).

Every change acts on the first dimension alone, on outputs. It is therefore right for weights [out, in], biases [out], the `lora_B`
[out, r] of an adapter and DoRA's magnitudes [out], while `lora_A` [r, in] is the same for each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from luthier.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Change(Protocol):
    """What a rule does to the numbers."""

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Native tensors of the old ones."""
        ...

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Old tensors of the native ones."""
        ...


@dataclass(frozen=True)
class Same:
    """Another name, the same numbers."""

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors as they are."""
        return list(tensors)

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors as they are."""
        return list(tensors)


@dataclass(frozen=True)
class Rows:
    """One tensor cut into blocks of rows.

    Args:
        sizes: rows of each block, in the order of the rule's native names.
    """

    sizes: tuple[int, ...]

    def forth(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Cut [Σ sizes, …] into blocks."""
        return list(tensors[0].split(self.sizes))

    def back(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Lay the blocks end to end."""
        import torch

        return [torch.cat(list(tensors))]


@dataclass(frozen=True)
class Rule:
    """Names in an old checkpoint, names in the native class, and what happens to the numbers in between.

    Args:
        old: name or names in the old checkpoint; `*` stands for one part of a dotted name.
        new: name or names in the native one, with the same `*`.
        change: the numbers; both its directions take and give tensors in the order of the names.
    """

    old: str | tuple[str, ...]
    new: str | tuple[str, ...]
    change: Change = field(default_factory=Same)

    @property
    def olds(self) -> tuple[str, ...]:
        """The names in the old checkpoint."""
        return (self.old,) if isinstance(self.old, str) else self.old

    @property
    def news(self) -> tuple[str, ...]:
        """The names in the native one."""
        return (self.new,) if isinstance(self.new, str) else self.new


@dataclass(frozen=True)
class Place:
    """Where a name belongs: a rule, and what its `*` stand for."""

    rule: Rule
    stars: tuple[str, ...]


def place_of(name: str, rules: Iterable[Rule], *, back: bool = False) -> Place | None:
    """The rule that a tensor's name belongs to: by old names, or by native ones (`back`); None where no rule knows it."""
    for rule in rules:
        for pattern in rule.news if back else rule.olds:
            if (stars := match(pattern, name)) is not None:
                return Place(rule, stars)
    return None


def carry(
    tensors: Iterable[tuple[str, Tensor]], rules: Sequence[Rule], where: str, *, back: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Give tensors their new names and shapes, one rule at a time; only the parts of unfinished rules are held.

    Args:
        tensors: names and tensors, in any order.
        rules: a family's rules.
        where: the checkpoint, for messages.
        back: from native to old.

    Raises:
        UserError: a name that no rule knows, or a part that is missing at the end.
    """
    pending: dict[Place, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        place = place_of(name, rules, back=back)
        if place is None:
            raise UserError(f"`{name}` is not a tensor of this family", where=where, hint="Is it the right family?")
        given, made = (place.rule.news, place.rule.olds) if back else (place.rule.olds, place.rule.news)
        parts = pending.setdefault(place, {})
        parts[name] = tensor
        wanted = [fill(pattern, place.stars) for pattern in given]
        if len(parts) == len(wanted):
            del pending[place]
            change = place.rule.change.back if back else place.rule.change.forth
            yield from zip(
                (fill(pattern, place.stars) for pattern in made), change([parts[part] for part in wanted]), strict=True
            )
    for place, parts in pending.items():
        given = place.rule.news if back else place.rule.olds
        missing = next(part for part in (fill(pattern, place.stars) for pattern in given) if part not in parts)
        raise UserError(f"the tensor `{missing}` is missing", where=where, hint="Are all files of the model there?")


def match(pattern: str, name: str) -> tuple[str, ...] | None:
    """What the `*` of a pattern stand for in a name; None if the name is another."""
    found = _expression(pattern).fullmatch(name)
    return found.groups() if found else None


def fill(pattern: str, stars: Sequence[str]) -> str:
    """A pattern with its `*` filled in."""
    pieces = pattern.split("*")
    return "".join(piece + star for piece, star in zip(pieces, [*stars, ""], strict=True))


@lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("([^.]+)".join(map(re.escape, pattern.split("*"))))
