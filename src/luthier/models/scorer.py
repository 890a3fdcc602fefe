r"""The scorer: a model in training that says numbers about a text instead of writing one.

Reward models, classifiers and critics are sequence-classification models of transformers. Their bodies are run as a policy's are; what
differs is what is read off:

* `values(batch)`: one number for each label and segment, [S, labels]. A decoder reads them off the state h of the segment's last token,
  W h, in float32, or through the dense layers of `dense_head`. Which token is last is decided as in transformers: the last one that is
  not the padding token, so a saved model scores the same text alike everywhere, even where the padding token also ends texts;
* `token_values(batch)`: one number for each target, [R], read off the state that predicts it: what a critic says of a state.

Whether the head is no more than that is not assumed: it is compared with what the model itself says of 8 tokens. Where it is more (BERT's
pooler, RoBERTa's two layers), the whole model is run on padded rectangles, and there are no values of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.data.batch import Batch
from luthier.errors import UserError
from luthier.models.dense_head import Dense
from luthier.models.head import PROBE_TOKENS, Head, decoder, evaluating, probe_tokens, relative_difference
from luthier.models.policy import Policy, padded_index
from luthier.models.score_head import head_names, last_matrix, output_layer

TOLERANCE = 1e-4
"""How far a head that reads one state may be from what the model says, relative to it, beyond the rounding of its type."""


class Scorer(Policy):
    """A sequence-classification model in training. Arguments are those of `Policy`.

    Attributes:
        single: the head reads the last token's state and nothing else; else the model is run whole.
    """

    single: bool

    def _described(self) -> Head:
        """The head's last matrix, and whether the head reads one state."""
        self.single = len(head_names(self.model)) == 1 and self._is_single()
        return self.head

    @property
    def head(self) -> Head:
        """The last layer, with its present weight [labels, H]."""
        layer = last_matrix(self.model)
        return Head(layer.weight, getattr(layer, "bias", None))  # type: ignore[arg-type]

    @property
    def labels(self) -> int:
        """How many values it says of a text."""
        return int(self.model.config.num_labels)

    def values(self, batch: Batch, *, packing: bool) -> Tensor:
        """What the model says of each segment, float32 [S, labels].

        Args:
            batch: on the model's device.
            packing: see `Policy.hidden`.
        """
        if self.single:
            return self._read(self.hidden(batch, packing=packing).index_select(0, self.last_tokens(batch)))
        lengths, starts = torch.diff(batch.cu_seqlens).tolist(), batch.cu_seqlens.tolist()
        pieces, order = [], []
        for rows in self._rectangles(lengths):
            index = padded_index([starts[row] for row in rows], [lengths[row] for row in rows]).to(batch.tokens.device)
            real = index >= 0
            tokens = torch.where(real, batch.tokens[index.clamp_min(0)], self._pad)
            pieces.append(self.model(input_ids=tokens, attention_mask=real.long()).logits.float())
            order.extend(rows)
        return torch.cat(pieces)[torch.tensor(order, device=batch.tokens.device).argsort()]

    def token_values(self, batch: Batch, *, packing: bool) -> Tensor:
        """What the model says before each target, float32 [R]: the first label, read off the state that predicts the target.

        Raises:
            UserError: the head reads more than one state.
        """
        if not self.single:
            raise UserError(f"{type(self.model).__name__} has no values of single tokens", hint="Use a decoder-only model.")
        return self._read(self.hidden(batch, packing=packing).index_select(0, batch.targets - 1))[:, 0]

    def last_tokens(self, batch: Batch) -> Tensor:
        """Flat index int64 [S] of the token that each segment is judged by: its last one that is not padding."""
        sizes = torch.diff(batch.cu_seqlens.long())
        owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes, output_size=len(batch))
        places = torch.arange(len(batch), device=sizes.device)
        starts = batch.cu_seqlens[:-1].long()
        found = torch.where(batch.tokens == self._pad, starts[owner], places)
        return starts.scatter_reduce(0, owner, found, "amax")

    @property
    def _pad(self) -> int:
        pad = self.model.config.get_text_config().pad_token_id
        return -1 if pad is None else int(pad)

    def _read(self, states: Tensor) -> Tensor:
        """Scores float32 [N, labels] of states [N, H]."""
        values = states.float()
        for part in self._layers():
            weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
            values = part(values) if weight is None else linear(values, weight.float(), None if bias is None else bias.float())
        return values

    def _layers(self) -> tuple[nn.Module, ...]:
        """What a state goes through on its way to the scores."""
        head = output_layer(self.model)
        dense = [part for part in head.modules() if isinstance(part, Dense)] if head is not None else []
        return tuple(dense[-1]) if dense else (last_matrix(self.model),)

    def _is_single(self) -> bool:
        first = self._layers()[0]
        tokens = probe_tokens(self.model, PROBE_TOKENS)
        tokens = tokens[tokens != self._pad][None]
        with evaluating(self.model):
            states = decoder(self.model)(input_ids=tokens, use_cache=False).last_hidden_state[0]
            said = self.model(input_ids=tokens).logits[0]
            if states.shape[-1] != first.weight.shape[-1]:  # type: ignore[index]
                return False
            mine = self._read(states[-1])
        return relative_difference(mine, said) <= max(TOLERANCE, 8 * torch.finfo(states.dtype).eps)
