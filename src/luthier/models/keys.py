"""What a model remembers of a token: the shape of its keys and values, which a learnt prefix has to have."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import DynamicCache, PreTrainedModel

from luthier.errors import UserError
from luthier.models.head import decoder, evaluating, probe_tokens


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys and values of one token, alike in all layers.

    Attributes:
        layers: layers that have them.
        heads: key-value heads of a layer.
        size: numbers of one head.
    """

    layers: int
    heads: int
    size: int


def measure_keys(model: PreTrainedModel) -> Keys:
    """Run one token and look at the cache, because configs say it in many ways.

    Raises:
        UserError: the model keeps something else, or its layers differ, so that one prefix cannot serve them all.
    """
    with evaluating(model):
        cache = DynamicCache(config=model.config)
        decoder(model)(input_ids=probe_tokens(model, 1)[None], past_key_values=cache, use_cache=True)
    found = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    shapes = {tuple(tensor.shape) for pair in found for tensor in pair if tensor is not None}
    if len(shapes) != 1 or any(tensor is None for pair in found for tensor in pair):
        held = " and ".join(str(list(shape)) for shape in sorted(shapes)) or "no keys and values"
        raise UserError(
            f"a prefix needs keys and values of one size in every layer; {type(model).__name__} keeps {held} of a token",
            where="method.type",
            hint="Use `prompt`, whose prefix is embeddings, or `lora`.",
        )
    _, heads, _, size = shapes.pop()
    return Keys(len(found), heads, size)
