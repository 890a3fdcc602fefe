"""The state that a library keeps for one parameter, as tensors with names, and back.

Libraries keep tensors (moments), numbers (step counts) and objects with tensors inside (projectors). All of them become tensors, so that a
checkpoint is safetensors and nothing is pickled. On the way back the library's own fresh state says what each was: the values go into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

CONSTANT = {"qmap1", "qmap2"}
"""Tables of bitsandbytes, the same for all parameters and all time."""


def pack(state: MutableMapping[str, Any]) -> dict[str, Tensor]:
    """A parameter's state as tensors; numbers as 0-d float64 or int64, parts of objects as `object/part`."""
    return {key: _as_tensor(holder[part]) for key, holder, part in _leaves(state)}


def unpack(state: MutableMapping[str, Any], saved: Callable[[str], Tensor | None]) -> None:
    """Put saved tensors into a parameter's fresh state, in its types and on its devices.

    Args:
        state: the library's own, of a step that moved nothing.
        saved: the tensor of a key, or None where there is none.
    """
    for key, holder, part in list(_leaves(state)):
        value, found = holder[part], saved(key)
        if found is None:
            continue
        if not isinstance(value, Tensor):
            holder[part] = type(value)(found.item())
        elif value.shape == found.shape:
            value.copy_(found)
        else:
            holder[part] = found.to(value)


def _leaves(state: MutableMapping[str, Any]) -> Iterator[tuple[str, MutableMapping[str, Any], str]]:
    """(key, the mapping it is in, its name there) of every tensor and number."""
    for key, value in state.items():
        if isinstance(value, Tensor | int | float):
            if key not in CONSTANT:
                yield key, state, key
        elif hasattr(value, "__dict__"):
            inside = vars(value)
            yield from (
                (f"{key}/{part}", inside, part) for part, held in inside.items() if isinstance(held, Tensor | int | float)
            )


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
