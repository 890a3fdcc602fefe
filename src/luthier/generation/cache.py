"""The key-value cache of the rows being decoded, which join and leave at different times.

Each layer holds keys and values [B, heads, T, d]. A row that is shorter than T is aligned to the right, with padding on its left
that the attention mask hides, so that the next token of every row goes to the same column:

    row 0   . . . a b c d │ next
    row 1   . . . . . x y │ next      mask 0 0 0 0 0 1 1 1,  position of next: 2

Position ids count the tokens of the row itself, never its columns. A learnt prefix (`luthier.models.adapters.prompts`) is the
first columns of each row, read with its prompt; such prompts are read one by one. Layers with a sliding window keep all their
keys here and are narrowed by the mask alone: transformers' own sliding cache has one length for all rows, which rows of
different length do not have.

A prompt of which the beginning was read before (`prefix.py`) gets those columns from there, and only its end is read. Prompts
that are read together read equally many tokens, so that all ends are aligned: as many as the one with the longest rest needs.

A cache that holds more than keys and values (the states of linear attention or Mamba) cannot be padded. Such models are decoded
one row at a time (`can_batch`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier.generation.adapters import Adapter, Adapters, Mix
from luthier.generation.prefix import Beginning, Layers
from luthier.models.adapters.prompts import Prompt, prompt_of
from luthier.models.rope import forget_lengths, growing, steady_length

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
        adapters: those that rows may have.

    Attributes:
        batched: whether it can hold more than one row.
        shares: whether what was read of a text serves every text that begins with it.
    """

    def __init__(self, model: PreTrainedModel, adapters: Adapters | None = None) -> None:
        self.batched = can_batch(model)
        self._model, self._prefix, self._adapters = model, prompt_of(model), adapters
        self.shares = self.batched and self._prefix is None and math.isinf(steady_length(model.config))
        self._device = model.device
        self._memory: Any = None
        self._columns = 0
        self._growing = growing(model)
        self._padding: list[int] = []  # columns of padding at the left of each row; new tokens do not change it
        self._mix = Mix(())
        accepted = inspect.signature(model.forward).parameters
        self._memory_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        self._takes_positions = "position_ids" in accepted
        self._takes_last_only = "logits_to_keep" in accepted

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        copies: int | Sequence[int] = 1,
        adapters: Sequence[Adapter | None] = (),
        beginnings: Sequence[Beginning | None] = (),
    ) -> Tensor:
        """Read new prompts, together, and append their rows.

        Args:
            prompts: token ids.
            copies: rows of each prompt, next to each other; it is read once, and what was read is copied.
            adapters: of each prompt; none by default.
            beginnings: of each prompt what need not be read, if `shares`; by default all is read.

        Returns:
            The logits of the next token of each row, [rows, V].
        """
        if self._memory is None:
            forget_lengths(self._growing)
        each = [copies] * len(prompts) if isinstance(copies, int) else list(copies)
        if self._prefix is not None:
            return torch.cat([self._add_behind(self._prefix, prompt, n) for prompt, n in zip(prompts, each, strict=True)])
        known = [beginning.length if beginning else 0 for beginning in beginnings] or [0] * len(prompts)
        columns = max(len(prompt) for prompt in prompts)
        count = max(len(prompt) - length for prompt, length in zip(prompts, known, strict=True))
        padding = [columns - len(prompt) for prompt in prompts]
        tokens = [[0] * (count - len(prompt)) + list(prompt[-count:]) for prompt in prompts]
        memory = Cache(layer_class_to_replicate=_Roomy) if self.batched else DynamicCache(config=self._model.config)
        if columns > count:
            _fill(memory, [(each.kept.layers if each else {}) for each in beginnings], padding, columns - count)
        mix = Mix(adapters or [None] * len(prompts))
        logits = self._forward(torch.tensor(tokens, device=self._device), memory, padding, columns, mix)
        self._join(memory, padding, columns, each, mix)
        return logits.repeat_interleave(torch.tensor(each, device=logits.device), 0)

    def _add_behind(self, prefix: Prompt, prompt: Sequence[int], copies: int) -> Tensor:
        """Read one prompt behind the learnt prefix, and append its rows."""
        memory, columns, mix = prefix.memory(self._model), prefix.length + len(prompt), Mix([None])
        tokens = torch.tensor([list(prompt)], device=self._device)
        embedded = prefix.before(self._model, tokens) if prefix.shape is None else None
        logits = self._forward(tokens, memory, [0], columns, mix, embedded)
        self._join(memory, [0], columns, [copies], mix)
        return logits.repeat_interleave(copies, 0)

    def extend(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Append one token to each row. Returns the logits of the next one, [rows, V]."""
        self._columns += 1
        chosen = torch.as_tensor(tokens, device=self._device)
        return self._forward(chosen[:, None], self._memory, self._padding, self._columns, self._mix)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, and forget the others, and the columns that only those needed. A row may be named twice."""
        if list(rows) == list(range(len(self._padding))):
            return
        if not rows:
            self._memory, self._columns, self._padding, self._mix = None, 0, [], Mix(())
            return
        unused = min(self._padding[row] for row in rows)
        self._padding = [self._padding[row] - unused for row in rows]
        self._mix = self._mix.keep(rows)
        self._columns -= unused
        index = torch.tensor(rows, device=self._device)
        for _, layer in _filled(self._memory):
            mine = index.to(layer.keys.device)  # a model may be spread over several devices
            layer.keys, layer.values = layer.keys[mine, :, unused:], layer.values[mine, :, unused:]

    def length(self, row: int) -> int:
        """Tokens of a row that were read."""
        return self._columns - self._padding[row]

    def copy(self, row: int) -> Layers:
        """What is remembered of a row."""
        begin = self._padding[row]
        return {
            number: (layer.keys[row, :, begin:].clone(), layer.values[row, :, begin:].clone())
            for number, layer in _filled(self._memory)
        }

    def _forward(
        self, tokens: Tensor, memory: Any, padding: Sequence[int], columns: int, mix: Mix, embedded: Tensor | None = None
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
        with self._adapters.answering(mix) if self._adapters else nullcontext():
            return self._model(**inputs).logits[:, -1]

    def _join(self, memory: Any, padding: list[int], columns: int, copies: Sequence[int], mix: Mix) -> None:
        """Append freshly read rows, so often each, to those in flight, aligned to the right."""
        if any(count > 1 for count in copies):
            padding = [blank for blank, count in zip(padding, copies, strict=True) for _ in range(count)]
            mix = Mix([adapter for adapter, count in zip(mix.rows, copies, strict=True) for _ in range(count)])
            often = torch.tensor(copies, device=self._device)
            for _, layer in _filled(memory):
                mine = often.to(layer.keys.device)
                layer.keys, layer.values = layer.keys.repeat_interleave(mine, 0), layer.values.repeat_interleave(mine, 0)
        if self._memory is None:
            self._memory, self._padding, self._columns, self._mix = memory, padding, columns, mix
            return
        widest = max(self._columns, columns)
        self._mix = Mix(self._mix.rows + mix.rows)
        for (_, old), (_, new) in zip(_filled(self._memory), _filled(memory), strict=True):
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


def _filled(memory: Any) -> Iterator[tuple[int, Any]]:
    """The layers that hold something, with their numbers (a layer that shares another one's keys holds nothing)."""
    return ((number, layer) for number, layer in enumerate(memory.layers) if layer.keys is not None)


def _fill(memory: Any, rows: Sequence[Layers], padding: Sequence[int], columns: int) -> None:
    """Put the beginnings of rows into an empty memory: each up to the column `columns`, behind its padding."""
    for number, (first, second) in next(row for row in rows if row).items():
        keys = first.new_zeros(len(rows), first.shape[0], columns, first.shape[2])
        values = second.new_zeros(len(rows), second.shape[0], columns, second.shape[2])
        for row, (layers, blank) in enumerate(zip(rows, padding, strict=True)):
            if blank < columns:
                own_keys, own_values = layers[number]
                keys[row, :, blank:] = own_keys[:, : columns - blank]
                values[row, :, blank:] = own_values[:, : columns - blank]
        memory.update(keys, values, number)


def _widen(tensor: Tensor, columns: int) -> Tensor:
    """Zero columns to the left of [B, heads, T, d] until there are `columns`."""
    return pad(tensor, (0, 0, columns - tensor.shape[-2], 0))
