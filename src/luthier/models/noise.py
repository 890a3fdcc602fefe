r"""NEFTune: uniform noise on the token embeddings while training (Jain et al. 2023).

To the embeddings [L, H] of a segment of L tokens, noise from U(-1, 1) · α / √(L H) is added, so that its expected length does not
depend on the segment's. It works against learning answers by heart; α is usually 5 to 15. Evaluation and sampling see no noise.

L is the segment's own length, however it is executed: packed with others or padded. (Where all rows of a batch are equally long,
that is what TRL and transformers compute; where they are not, those take the padded length.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingNoise:
    """Noise on what an embedding gives, in training mode.

    Args:
        embedding: gives [..., H]; a hook is put on it.
        alpha: scale of the noise.

    Attributes:
        lengths: float32 [...], the length of the segment of each token that is looked up next. Other lookups get no noise.
    """

    def __init__(self, embedding: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: Tensor | None = None
        embedding.register_forward_hook(self._add)

    def _add(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training or self.lengths is None or self.lengths.shape != output.shape[:-1]:
            return None
        size = self.alpha / (self.lengths * output.shape[-1]).sqrt()
        return output + torch.zeros_like(output).uniform_(-1, 1) * size[..., None].to(output.dtype)
