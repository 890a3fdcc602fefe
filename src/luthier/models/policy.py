r"""The policy: a model that learns, seen through the three things that training needs of it.

* `hidden(batch)`: the states that the output head reads, [T, H], in the order of the batch's tokens. Never logits.
* `head`: how logits come from them (`luthier.models.head`).
* `trainable`: the parameters that move, and `save`/`read` to write them as an ordinary folder and get them back.

A batch is ragged: S segments end to end. Where the probe has shown that segments in one row do not see each other, the whole batch is
one row of T tokens, with positions that restart and *no* attention mask and *no* cache (either of them makes transformers drop its
block-diagonal mask, and segments leak). Elsewhere segments of like length are padded to the right into rectangles, run with an
attention mask, and gathered back. Both give the same states to rounding, so how a batch is executed never changes what is learnt.
Rotary positions that follow the longest segment of a pass (Phi-3's `longrope`, InternLM's `dynamic`) would couple the segments of a row or
rectangle; where a batch reaches into that range, its segments are run one by one.

Cost: with attention within segments (`luthier.models.attention`) or FlashAttention only the Σ L² pairs that count are computed; the
SDPA and eager paths of transformers compute T² of them. Padding wastes at most a fifth of its positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from luthier.models.adapters import borrowed
from luthier.models.adapters.format import load_values, read_values, write_adapter
from luthier.models.adapters.insert import adapter_config
from luthier.models.adapters.prompts import prefix_length, prompt_of
from luthier.models.attention import packed_row
from luthier.models.balance import Balance
from luthier.models.dense_head import dense_names, write_dense
from luthier.models.head import Head, decoder, describe, live
from luthier.models.legacy.norm_head import HEAD, NormHead, at_rest
from luthier.models.loading import load_as_stored, quiet
from luthier.models.methods import Trainable, trainable
from luthier.models.noise import EmbeddingNoise
from luthier.models.probe import Isolation, probe_isolation
from luthier.models.quantize.base import summary
from luthier.models.rope import forget_lengths, growing, steady_length
from luthier.models.score_head import is_scorer

if TYPE_CHECKING:
    from luthier.data.batch import Batch

WASTE = 0.2
"""Largest share of padding in a rectangle of segments."""
SLACK = 64
"""Padding in tokens that is always allowed: it costs less than another forward pass."""


class Savable(Protocol):
    """What can write itself beside a model: a tokenizer."""

    def save(self, folder: Path) -> None:
        """Write the files that plain transformers loads."""


class Critic(Protocol):
    """What says of every prefix what it is worth (`luthier.models.critic`)."""

    def values(self, batch: Batch, states: Tensor, *, packing: bool) -> Tensor:
        """The value of the text before each target, float32 [R], from the policy's states there [R, H]."""


class Teacher(Protocol):
    """What a policy is to be near to (`luthier.models.teacher`)."""

    def divergence(self, batch: Batch, states: Tensor, head: Head, *, packing: bool) -> Tensor:
        """Distance of the policy from it at each target, float32 [R], from the policy's states there [R, H] and its output head."""


class Policy:
    """A causal language model in training.

    Args:
        model: the model with its method applied (`methods.apply_method`).
        trained: its trained parameters; default: all that require gradients.
        noise: alpha of NEFTune's noise on the embeddings while training; 0 is none.
        balance: weight of the loss that keeps experts evenly used; 0 is none.

    Attributes:
        model: the transformers model.
        balance: watches the routers of a mixture of experts while it is trained, or None.
        trainable: the trained parameters.
        isolation: whether segments may share a row, and why.
        notes: sentences for the run's log (fallbacks taken).
        temperature: the policy is the model's distribution at this temperature; reinforcement sets it to that of its samples.
        critic: says what a text is worth so far, where the stage has one.
        teacher: what a distillation learns from.
    """

    def __init__(
        self, model: PreTrainedModel, trained: Trainable | None = None, *, noise: float = 0.0, balance: float = 0.0
    ) -> None:
        self.model = model
        self.trainable = trained or trainable(model)
        self.temperature = 1.0
        self.critic: Critic | None = None
        self.teacher: Teacher | None = None
        self._head = self._described()
        self.isolation: Isolation = probe_isolation(model)
        self._steady_length, self._growing = steady_length(model.config) - prefix_length(model), growing(model)
        self._noise = EmbeddingNoise(model.get_input_embeddings(), noise) if noise else None
        self.balance = Balance(model, balance) if balance else None
        self.notes = self.trainable.notes + ((self._head.note,) if self._head.note else ())

    def _described(self) -> Head:
        """The output head, checked against what the model itself computes."""
        return describe(self.model)

    @property
    def head(self) -> Head:
        """The output head with its present weight; take it anew for every forward pass."""
        return live(self.model, self._head).at(self.temperature)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def attention(self) -> str:
        """Name of the attention implementation in use."""
        return str(self.model.config._attn_implementation)

    def hidden(self, batch: Batch, *, packing: bool) -> Tensor:
        """Final hidden states [T, H] of a batch, in the model's dtype, in the order of `batch.tokens`.

        Args:
            batch: on the model's device.
            packing: one row without padding, where the model isolates segments; else (or if it does not) padded rectangles.
        """
        if self._packs(batch, packing):
            if self._noise:
                sizes = torch.diff(batch.cu_seqlens)
                self._noise.lengths = torch.repeat_interleave(sizes, sizes, output_size=len(batch))[None].float()
            with packed_row(batch.cu_seqlens, batch.max_length) as boundaries, self._balanced(_owner(batch)):
                return self._run(input_ids=batch.tokens[None], position_ids=batch.positions[None], **boundaries)[0]
        lengths = torch.diff(batch.cu_seqlens).tolist()
        starts = batch.cu_seqlens.tolist()
        pieces, order = [], []
        for rows in self._rectangles(lengths):
            index = padded_index([starts[row] for row in rows], [lengths[row] for row in rows]).to(batch.tokens.device)
            real = index >= 0
            tokens = batch.tokens[index.clamp_min(0)]
            if self._noise:
                self._noise.lengths = real.sum(1, keepdim=True).expand_as(real).float()
            with self._balanced(_owner(batch)[index].masked_fill(~real, -1)):
                pieces.append(self._rectangle(tokens, real)[real])
            order.append(index[real])
        return torch.cat(pieces)[torch.cat(order).argsort()]

    def computed_tokens(self, batch: Batch, *, packing: bool) -> int:
        """Positions that `hidden` computes for this batch, padding included."""
        if self._packs(batch, packing):
            return len(batch)
        lengths = torch.diff(batch.cu_seqlens).tolist()
        return sum(len(rows) * lengths[rows[0]] for rows in self._rectangles(lengths))

    def _packs(self, batch: Batch, packing: bool) -> bool:
        return packing and self.isolation.ok and batch.max_length <= self._steady_length

    def _rectangles(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which segments are run together; beyond the steady length each is run alone."""
        return rectangles(lengths) if max(lengths) <= self._steady_length else [[row] for row in range(len(lengths))]

    def _rectangle(self, tokens: Tensor, real: Tensor) -> Tensor:
        """States [B, L, H] of right-padded rows, behind the learnt prefix if there is one."""
        if (prompt := prompt_of(self.model)) is not None:
            forget_lengths(self._growing)
            return prompt.hidden(self.model, tokens, real)
        return self._run(input_ids=tokens, attention_mask=real.long()) if not real.all() else self._run(input_ids=tokens)

    def _run(self, **inputs: Any) -> Tensor:
        forget_lengths(self._growing)
        return decoder(self.model)(**inputs, use_cache=False).last_hidden_state

    @contextmanager
    def _balanced(self, owner: Tensor) -> Iterator[None]:
        """Watch the routers in a pass that is learnt from; `owner` is the segment of each position, or -1."""
        if self.balance is None or not torch.is_grad_enabled():
            yield
            return
        self.balance.begin()
        yield
        self.balance.end(owner.flatten())

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None, tokenizer: Savable | None = None) -> None:
        """Write an ordinary folder: PEFT's for an adapter (float32), transformers' for the rest (in the model's dtype).

        Args:
            folder: created if absent.
            weights: values of the trained parameters by name, such as float32 masters; default: the model's own.
            tokenizer: written beside.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if borrowed.holder_of(self.model) is not None:
            borrowed.write(folder, self.model, weights)
        elif adapter_config(self.model) is not None:
            write_adapter(folder, self.model, weights)
        else:
            save_model(self.model, folder, weights)
        if tokenizer is not None:
            tokenizer.save(folder)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The trained tensors of a folder that `save` wrote, by parameter name, in the file's dtype, on the CPU.

        Raises:
            UserError: they are not all there, or do not fit this model.
        """
        if borrowed.holder_of(self.model) is not None:
            return borrowed.read(folder, self.model)
        if adapter_config(self.model) is not None:
            return read_values(folder, self.model)
        stored = load_as_stored(
            folder, scoring=is_scorer(self.model)
        )  # a whole model: transformers alone knows how its names map to the files'
        return {name: stored.get_parameter(name).detach() for name in self.trainable.parameters}

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Put the trained tensors of a folder back into the model, in its dtype."""
        if adapter_config(self.model) is not None:
            load_values(folder, self.model)
            return
        for name, value in self.read(folder).items():
            self.trainable.parameters[name].copy_(value)

    def describe(self) -> str:
        """One line: how much is trained, in what type, with which attention, packed or padded."""
        way = "packed" if self.isolation.ok else f"padded ({self.isolation.reason})"
        base = f", {text}" if (text := summary(self.model)) else ""
        return f"{self.trainable}, {str(self.dtype).removeprefix('torch.')}, {self.attention} attention, {way}{base}"


def save_model(
    model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor] | None = None, *, max_shard_size: str = "5GB"
) -> None:
    """Write a plain model as a transformers folder: config, generation config, safetensors; tied weights once, dense layers beside.

    Args:
        model: without adapter (merge first).
        folder: created if absent.
        weights: values to write in place of the model's own, by parameter name; each is cast to its parameter's dtype.
        max_shard_size: largest file, such as `2GB`.
    """
    given = weights or {}
    cast = {id(parameter): given[name].to(parameter) for name, parameter in model.named_parameters() if name in given}
    state = {name: cast.get(id(value), value) for name, value in model.state_dict(keep_vars=True).items()}
    if isinstance(model.get_output_embeddings(), NormHead):
        state[HEAD] = at_rest(folder, state[HEAD])
    beside = dense_names(model)
    write_dense(folder, state, beside)
    plain = {name: value.detach() for name, value in state.items() if name not in beside}
    with _as_published(model), quiet():
        model.save_pretrained(folder, state_dict=plain, max_shard_size=max_shard_size)


def save_description(model: PreTrainedModel, folder: Path) -> None:
    """Write what a transformers folder holds besides weights: config and generation config. The model may stand on the `meta` device."""
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    with _as_published(model), quiet():
        model.config.save_pretrained(folder)
        if (settings := _generation_settings(model)) is not None:
            settings.save_pretrained(folder)


@contextmanager
def _as_published(model: PreTrainedModel) -> Iterator[None]:
    """The settings of `model` as those who load its folder want them."""
    settings = _generation_settings(model)
    if settings is not None and not settings.do_sample and _names_sampling_values(settings):
        settings.do_sample = True  # as published models mean it; transformers refuses to write the values without
    cached, model.config.use_cache = model.config.use_cache, True  # training turns it off
    try:
        yield
    finally:
        model.config.use_cache = cached


def _generation_settings(model: PreTrainedModel) -> GenerationConfig | None:
    """How a model writes by default; a model that scores texts has no such settings."""
    return getattr(model, "generation_config", None)


def _names_sampling_values(settings: GenerationConfig) -> bool:
    return any(getattr(settings, name, None) is not None for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"))


def rectangles(lengths: Sequence[int]) -> list[list[int]]:
    """Group segments of like length for padding: lists of segment numbers, longest first.

    A segment joins the rectangle of the next longer ones while the padding in it stays below `WASTE` of its area (or `SLACK` tokens).
    """
    groups: list[list[int]] = []
    width = padding = 0
    for segment in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        padding += width - lengths[segment]
        if groups and padding <= max(SLACK, WASTE * width * (len(groups[-1]) + 1)):
            groups[-1].append(segment)
        else:
            groups.append([segment])
            width, padding = lengths[segment], 0
    return groups


def _owner(batch: Batch) -> Tensor:
    """The segment of each token, int64 [T]."""
    lengths = torch.diff(batch.cu_seqlens)
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=len(batch))


def padded_index(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Flat token index int64 [rows, longest] of right-padded segments; -1 where there is padding."""
    column = torch.arange(max(lengths))
    index = torch.tensor(starts)[:, None] + column
    return index.masked_fill(column >= torch.tensor(lengths)[:, None], -1)
