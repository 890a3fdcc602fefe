"""A learnt prefix before every segment: prefix tuning, P-tuning v2, prompt tuning.

Two kinds, both of length P and shared by all rows:

* keys and values [layers, heads, P, d] that every layer finds in its cache, as if it had read P tokens before (prefix tuning, Li & Liang
  2021, arXiv:2101.00190, where a small network makes them; P-tuning v2, Liu et al. 2021, arXiv:2110.07602, trains them as they are);
* embeddings [P, H] of P tokens that stand before those of the text (prompt tuning, Lester et al. 2021, arXiv:2104.08691).

The text begins at position P, as in PEFT, whose encoders and numbers these are. A prefix belongs to a row, not to a place within one, so
segments cannot be laid end to end; they are padded to the right into rectangles, and the mask counts the prefix in.

In training the cache keeps nothing of the text: it only puts the prefix before the keys and values that a layer hands it. So the
backward pass may compute a layer a second time (activation checkpointing), and no row outlives its step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from luthier.models.adapters.borrowed import ENCODER, config_of, positions
from luthier.models.head import decoder


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prefix of a model.

    Attributes:
        encoder: PEFT's module that makes it.
        length: P, positions that it takes.
        shape: layers and key-value heads of the model; None where the prefix is embeddings.
    """

    encoder: nn.Module
    length: int
    shape: tuple[int, int] | None

    def hidden(self, model: PreTrainedModel, tokens: Tensor, real: Tensor) -> Tensor:
        """Final hidden states [B, L, H] of right-padded rows behind the prefix.

        Args:
            model: the model that the prefix was learnt for.
            tokens: int64 [B, L].
            real: bool [B, L], False at padding.
        """
        mask = torch.cat([real.new_ones(len(real), self.length), real], dim=1).long()
        if self.shape is None:
            states = decoder(model)(inputs_embeds=self.before(model, tokens), attention_mask=mask, use_cache=False)
            return states.last_hidden_state[:, self.length :]
        cache = DynamicCache()
        cache.layers = [_Before(keys, values) for keys, values in self._keys_and_values(len(tokens), model.dtype)]
        inputs = {"input_ids": tokens, "attention_mask": mask, "past_key_values": cache, "use_cache": False}
        return decoder(model)(**inputs).last_hidden_state

    def before(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Embeddings [B, P + L, H] of the prefix and the tokens [B, L]."""
        text: Tensor = model.get_input_embeddings()(tokens)
        made: Tensor = self.encoder(positions(self.encoder))
        return torch.cat([made.to(text.dtype).expand(len(tokens), -1, -1), text], dim=1)

    def memory(self, model: PreTrainedModel) -> DynamicCache:
        """A cache for one row, in which the prefix has been read already where it is keys and values."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._keys_and_values(1, model.dtype) if self.shape else ()):
            cache.update(keys, values, layer)
        return cache

    def _keys_and_values(self, rows: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [rows, heads, P, d] of each layer."""
        assert self.shape is not None
        layers, heads = self.shape
        made: Tensor = self.encoder(positions(self.encoder)).to(dtype)
        apart = made.view(self.length, layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
        return [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in apart]


class _Before(DynamicLayer):
    """The cache of a layer in training: it puts the prefix before what it is handed, and keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix and these keys and values [B, heads, L, d], end to end."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def prompt_of(model: PreTrainedModel) -> Prompt | None:
    """The learnt prefix of a model, or None when it has none (or it is switched off)."""
    config = config_of(model)
    if config is None or not config.is_prompt_learning:
        return None
    shape = (config.num_layers, config.num_attention_heads) if config.peft_type.value == "PREFIX_TUNING" else None
    return Prompt(getattr(model, ENCODER), config.num_virtual_tokens, shape)


def prefix_length(model: PreTrainedModel) -> int:
    """Positions of the context that a learnt prefix takes; 0 without one."""
    prompt = prompt_of(model)
    return prompt.length if prompt else 0
