r"""Single rows of the embeddings, trained while all others stay frozen: new words without a new vocabulary.

A base model that is to learn `<think>`, or the marks of a chat template that it has never seen, needs a row for each of these tokens and
nothing of the other hundred thousand. The chosen rows are a parameter of their own, [n, H] from the base's values, and take the
place of theirs:

    embed(t) = rows[place(t)] if t is one of them else E[t]
    logits   = h E'ᵀ   with those rows of the head replaced

Where the head is tied to the embeddings both read one parameter; where it is not, the head's rows are trained as well, in one of their
own. Files say this as PEFT does (`trainable_token_indices`), which replaces rows too, so an adapter fits whatever values the base has
there. A token beyond the end of the embeddings makes them grow first (`make_room`): in plain PEFT,
`model.resize_token_embeddings(len(tokenizer))` before the adapter is loaded.

The embeddings' side costs nothing. The head's side takes the gradient of the whole head, [V, H], and keeps n rows of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.config import EMBEDDINGS, AdapterConfig
from luthier.models.adapters.lora import Adapted, replace_module
from luthier.models.loading import quiet


class TokenRows(Adapted):
    """An embedding or an output head with some rows trained.

    Parameter: `trainable_tokens_delta` [n, H] in the base's dtype; by PEFT's name for it, though it holds values and no differences.

    Args:
        base_layer: an `nn.Embedding` or a linear head with weight [V, H]; it is frozen.
        rows: the rows that are trained, different ones.
        shared: the parameter of the embeddings, for a head that is tied to them.
    """

    def __init__(self, base_layer: nn.Module, rows: tuple[int, ...], shared: nn.Parameter | None = None) -> None:
        super().__init__(base_layer)
        weight: Tensor = base_layer.weight  # type: ignore[assignment]
        index = torch.tensor(rows, device=weight.device)
        self.trainable_tokens_delta = nn.Parameter(weight.detach()[index].clone()) if shared is None else shared
        place = torch.full((weight.shape[0],), -1, device=weight.device)
        place[index] = torch.arange(len(rows), device=weight.device)
        self.register_buffer("index", index)
        self.register_buffer("place", place)

    @property
    def weight(self) -> Tensor:
        """The weight [V, H] with the trained rows in it; differentiable in them."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if not self.enabled:
            return weight
        return weight.index_copy(0, self.index, self.trainable_tokens_delta.to(weight.dtype))  # type: ignore[arg-type]

    @property
    def bias(self) -> Tensor | None:
        """A head's bias; it stays frozen."""
        return getattr(self.base_layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Token ids int64 [...] to their embeddings [..., H], or for a head hidden states [..., H] to logits [..., V]."""
        y: Tensor = self.base_layer(x)
        if not self.enabled:
            return y
        if not isinstance(self.base_layer, nn.Embedding):
            bias = None if self.bias is None else self.bias[self.index]  # type: ignore[index]
            return y.index_copy(-1, self.index, functional.linear(x, self.trainable_tokens_delta, bias).to(y.dtype))  # type: ignore[arg-type]
        place: Tensor = self.place[x]  # type: ignore[index, assignment]
        rows = functional.embedding(place.clamp_min(0), self.trainable_tokens_delta).to(y.dtype)
        scale = getattr(self.base_layer, "embed_scale", None)  # Gemma's embeddings multiply what they look up
        if scale is not None:
            rows = rows * torch.as_tensor(scale).to(rows)
        return torch.where((place >= 0)[..., None], rows, y)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with the trained rows written into its weight, in place: what is tied to it changes with it."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        weight.index_copy_(0, self.index, self.trainable_tokens_delta.to(weight))  # type: ignore[arg-type]
        return self.base_layer

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"{self.trainable_tokens_delta.shape[0]} rows trained"


def token_layers(model: nn.Module) -> dict[str, TokenRows]:
    """The layers of a model with trained rows, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TokenRows)}


def tokens_to_train(model: PreTrainedModel, rows: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """These rows as `AdapterConfig.tokens` of this model: of the embeddings, and of a head that is not tied to them."""
    if not rows:
        return {}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    tied = head is None or head.weight is embeddings.weight
    return {_ending(names[module], names.values()): rows for module in ((embeddings,) if tied else (embeddings, head))}


def insert_token_rows(model: PreTrainedModel, tokens: Mapping[str, tuple[int, ...]]) -> None:
    """Train these rows of `model`, in place, which has room for them.

    Raises:
        UserError: a name fits no embedding and no head, or the layer is adapted or trained whole already.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    if tied and len(set(tokens.values())) > 1:
        raise UserError("the head is tied to the embeddings and has no rows of its own", where="method.trainable_tokens")
    names = {module: name for name, module in model.named_modules() if module in (embeddings, head)}
    wanted = {module: _rows_of(name, module is embeddings, tokens) for module, name in names.items()}
    if not any(wanted.values()):
        raise UserError(f"no embeddings and no head are called {' or '.join(map(repr, tokens))}", where="method.trainable_tokens")
    if tied:
        wanted = dict.fromkeys(wanted, next(iter(tokens.values())))
    shared: nn.Parameter | None = None
    for module, rows in wanted.items():
        if rows is None:
            continue
        if not isinstance(module, nn.Embedding | nn.Linear) or _trains(module):
            raise UserError(
                f"`{names[module]}` has an adapter or is trained whole, and so are its rows",
                where="method.trainable_tokens",
                hint="Leave it out of `method.target` and `method.modules_to_save`.",
            )
        made = TokenRows(module, rows, shared)
        shared = made.trainable_tokens_delta if tied else None
        replace_module(model, names[module], made)


@torch.no_grad()
def make_room(model: PreTrainedModel, rows: int) -> bool:
    """Let embeddings and head grow to `rows` rows, in place; new ones are the mean of the old. False if there was room.

    The mean is what PEFT and transformers begin near to as well, and it is the same on every machine.
    """
    before = model.get_input_embeddings().weight.shape[0]
    if rows <= before:
        return False
    with quiet():
        model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    weights = {id(w): w for w in (model.get_input_embeddings().weight, getattr(head, "weight", None)) if w is not None}
    bias = getattr(head, "bias", None)
    for weight in (*weights.values(), *([bias] if bias is not None else [])):
        weight[before:] = weight[:before].float().mean(0).to(weight)
    return True


def room_needed(config: AdapterConfig) -> int:
    """Rows that an adapter's tokens need in the embeddings."""
    return max((row + 1 for rows in config.tokens.values() for row in rows), default=0)


def _rows_of(name: str, is_embeddings: bool, tokens: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The rows that are meant of the module called `name`; None of them."""
    for ending, rows in tokens.items():
        if is_embeddings if ending == EMBEDDINGS else name == ending or name.endswith(f".{ending}"):
            return rows
    return None


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _ending(name: str, names: Collection[str]) -> str:
    """The shortest end of a dotted name that no other module has."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        ending = ".".join(parts[-length:])
        if sum(other == ending or other.endswith(f".{ending}") for other in names) == 1:
            return ending
    return name
