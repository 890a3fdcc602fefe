"""The key-value cache of the rows being decoded, which join and leave at different times.

Each layer holds keys and values [B, heads, T, d]. A row that is shorter than T is aligned to the right, with padding on its left
that the attention mask hides, so that the next token of every row goes to the same column:

    row 0   . . . a b c d │ next
    row 1   . . . . . x y │ next      mask 0 0 0 0 0 1 1 1,  position of next: 2

Position ids count the tokens of the row itself, never its columns. A learnt prefix (`luthier.models.adapters.prompts`) is the first
columns of each row, read with its prompt; such prompts are read one by one. Layers with a sliding window keep all their keys here and
are narrowed by the mask alone: transformers' own sliding cache has one length for all rows, which rows of different length
do not have.

A cache that holds more than keys and values (the states of linear attention or Mamba) cannot be padded. Such models are decoded
one row at a time (`can_batch`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier.models.adapters.prompts import Prompt, prompt_of
from luthier.models.rope import forget_lengths, growing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEYS_AND_VALUES = {"DynamicLayer", "DynamicSlidingWindowLayer"}
ROOM = 64
"""Columns that are made at once; tokens are written into them in place."""


def can_batch(model: PreTrainedModel) -> bool:
    """Whether the model remembers keys and values only, so that rows of different length can share a cache."""
    return {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} <= _KEYS_AND_VALUES


class RowCache:
    """The rows in flight: what the model remembers of them, and the forward pass that goes on from there.

    Args:
        model: a causal language model of transformers, in evaluation mode.

    Attributes:
        batched: whether it can hold more than one row.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.batched = can_batch(model)
        self._model, self._prefix = model, prompt_of(model)
        self._device = model.device
        self._memory: Any = None
        self._columns = 0
        self._growing = growing(model)
        self._padding: list[int] = []  # columns of padding at the left of each row; new tokens do not change it
        accepted = inspect.signature(model.forward).parameters
        self._memory_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        self._takes_positions = "position_ids" in accepted
        self._takes_last_only = "logits_to_keep" in accepted

    def add(self, prompts: Sequence[Sequence[int]], *, copies: int = 1) -> Tensor:
        """Read new prompts, together, and append their rows.

        Args:
            prompts: token ids.
            copies: rows of each prompt, next to each other; it is read once, and what was read is copied.

        Returns:
            The logits of the next token of each row, [len(prompts) · copies, V].
        """
        if self._memory is None:
            forget_lengths(self._growing)
        if self._prefix is not None:
            return torch.cat([self._add_behind(self._prefix, prompt, copies) for prompt in prompts])
        memory = Cache(layer_class_to_replicate=_Roomy) if self.batched else DynamicCache(config=self._model.config)
        columns = max(len(prompt) for prompt in prompts)
        padding = [columns - len(prompt) for prompt in prompts]
        tokens = [[0] * blank + list(prompt) for blank, prompt in zip(padding, prompts, strict=True)]
        logits = self._forward(torch.tensor(tokens, device=self._device), memory, padding, columns)
        self._join(memory, padding, columns, copies)
        return logits.repeat_interleave(copies, 0)

    def _add_behind(self, prefix: Prompt, prompt: Sequence[int], copies: int) -> Tensor:
        """Read one prompt behind the learnt prefix, and append its rows."""
        memory, columns = prefix.memory(self._model), prefix.length + len(prompt)
        tokens = torch.tensor([list(prompt)], device=self._device)
        embedded = prefix.before(self._model, tokens) if prefix.shape is None else None
        logits = self._forward(tokens, memory, [0], columns, embedded)
        self._join(memory, [0], columns, copies)
        return logits.repeat_interleave(copies, 0)

    def extend(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Append one token to each row. Returns the logits of the next one, [rows, V]."""
        self._columns += 1
        chosen = torch.as_tensor(tokens, device=self._device)
        return self._forward(chosen[:, None], self._memory, self._padding, self._columns)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, and the columns that only the forgotten ones needed."""
        if len(rows) == len(self._padding):
            return
        if not rows:
            self._memory, self._columns, self._padding = None, 0, []
            return
        unused = min(self._padding[row] for row in rows)
        self._padding = [self._padding[row] - unused for row in rows]
        self._columns -= unused
        index = torch.tensor(rows, device=self._device)
        for layer in _filled(self._memory):
            layer.keys, layer.values = layer.keys[index, :, unused:], layer.values[index, :, unused:]

    def _forward(
        self, tokens: Tensor, memory: Any, padding: Sequence[int], columns: int, embedded: Tensor | None = None
    ) -> Tensor:
        """Run `tokens` [B, n] (or `embedded` [B, n, H]), the last n of `columns`, on top of `memory`. Returns the last logits, [B, V]."""
        place = torch.arange(columns, device=self._device) - torch.tensor(padding, device=self._device)[:, None]
        inputs: dict[str, Any] = {self._memory_name: memory, "use_cache": True}
        inputs |= {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
        count = (tokens if embedded is None else embedded).shape[1]
        if any(padding):
            inputs["attention_mask"] = (place >= 0).long()
        if self._takes_positions:
            inputs["position_ids"] = place.clamp(min=0)[:, -count:]
        if self._takes_last_only:
            inputs["logits_to_keep"] = 1
        return self._model(**inputs).logits[:, -1]

    def _join(self, memory: Any, padding: list[int], columns: int, copies: int) -> None:
        """Append freshly read rows, so often each, to those in flight, aligned to the right."""
        if copies > 1:
            padding = [blank for blank in padding for _ in range(copies)]
            for layer in _filled(memory):
                layer.keys, layer.values = layer.keys.repeat_interleave(copies, 0), layer.values.repeat_interleave(copies, 0)
        if self._memory is None:
            self._memory, self._padding, self._columns = memory, padding, columns
            return
        widest = max(self._columns, columns)
        for old, new in zip(_filled(self._memory), _filled(memory), strict=True):
            old.keys = torch.cat([_widen(old.keys, widest), _widen(new.keys, widest)])
            old.values = torch.cat([_widen(old.values, widest), _widen(new.values, widest)])
        self._padding = [blank + widest - self._columns for blank in self._padding] + [
            blank + widest - columns for blank in padding
        ]
        self._columns = widest


class _Roomy(DynamicLayer):
    """The cache of a layer with room to its right: the next token is written in place, where transformers copies the whole cache for it.

    `keys` and `values` are views of what is filled; whoever puts other tensors in their place makes new room necessary.
    """

    keys: Any
    values: Any

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._room: tuple[Tensor, Tensor] | None = None
        self._views: tuple[Any, Any] = (None, None)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, n, d]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        mine = self._views[0] is self.keys and self._views[1] is self.values
        if self._room is None or not mine or end > self._room[0].shape[-2]:
            self._room = _spacious(self.keys, key_states, used, end), _spacious(self.values, value_states, used, end)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, used:end] = states
        self.keys, self.values = self._views = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values


def _spacious(before: Tensor, states: Tensor, used: int, end: int) -> Tensor:
    """A tensor like `states` with `end` columns and some more, the first of them filled from `before`."""
    room = states.new_empty(*states.shape[:2], end + ROOM, states.shape[-1])
    if used:
        room[:, :, :used] = before
    return room


def _filled(memory: Any) -> list[Any]:
    """The layers that hold something (a layer that shares another one's keys holds nothing)."""
    return [layer for layer in memory.layers if layer.keys is not None]


def _widen(tensor: Tensor, columns: int) -> Tensor:
    """Zero columns to the left of [B, heads, T, d] until there are `columns`."""
    return pad(tensor, (0, 0, columns - tensor.shape[-2], 0))
