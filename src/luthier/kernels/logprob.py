r"""Log-probabilities of chosen tokens without ever holding the full logits.

For R hidden states h (only those that predict a supervised token) and an output head W [V, H], bias b, multiplier s and soft-cap c:

    z = s (W h + b),  z ← c tanh(z / c),   log p(y | h) = z_y - log Σ_v exp z_v

The rows are worked through in chunks, so that at most `chunk · V` logits exist at a time (R · V for a vocabulary of 150 000 and
16 000 tokens would be 9.6 GB in float32). Three of Luthier's economies meet here:

* unsupervised positions never reach the matrix product (the caller drops them);
* with a frozen head (LoRA, freeze) the gradient of row r is g_r · ∂log p_r/∂h_r, and that direction, an [R, H] tensor, is computed
  in the forward pass while the chunk's logits are at hand: two matrix products in all, no recomputation, whatever the objective;
* with a trained head the logits of a chunk are computed again in the backward pass: four products, nothing of size V kept. Where all
  rows fit into one chunk, their distribution is kept instead, and the fourth product is saved.

The matrix product runs in the dtype of the hidden states; soft-max and log run in float32. `token_logprobs_reference` is the
definition, `token_logprobs` the fused form; tests hold them together. Idea of chunked heads: Liger Kernel, torchtune, TRL.

With label smoothing e (Szegedy et al. 2016) the target is not y alone but q = (1 - e) · [v = y] + e / V, and what is returned is

    Σ_v q_v log p_v = (1 - e) log p_y + e mean_v log p_v,   with gradient q - p instead of [v = y] - p.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 2**20
"""Memory of one chunk of float32 logits; larger is not faster once the product is compute-bound."""


class TokenScores(NamedTuple):
    """What the head says of R chosen tokens.

    Attributes:
        logprob: float32 [R], differentiable; with `smoothing` the expectation under the smoothed target (below).
        top1: bool [R], whether no token was more likely.
        entropy: float32 [R] of the whole distribution in nats, or None; not differentiable.
    """

    logprob: Tensor
    top1: Tensor
    entropy: Tensor | None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
    smoothing: float = 0.0,
    entropy: bool = False,
) -> TokenScores:
    """Score R target tokens.

    Args:
        hidden: [R, H], the states that predict the targets, after the model's last norm.
        weight: [V, H], the output head, in the dtype of `hidden`.
        targets: int64 [R].
        bias: [V] or None.
        scale: multiplier of the logits.
        softcap: Gemma-2's cap c; 0 is none.
        smoothing: share of the target that is spread over the vocabulary.
        entropy: also return the entropy of each distribution.
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    direction = torch.is_grad_enabled() and hidden.requires_grad and not trained
    keep = torch.is_grad_enabled() and trained and not softcap and len(chunks_of(hidden.shape[0], weight.shape[0])) == 1
    kept = "direction" if direction else "distribution" if keep else ""
    logprob, top1, spread, *_ = _score(hidden, weight, bias, targets, scale, softcap, smoothing, entropy, kept)
    return TokenScores(logprob, top1, spread if entropy else None)


def token_logprobs_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
    smoothing: float = 0.0,
) -> TokenScores:
    """The plain definition of `token_logprobs`, with full logits."""
    logits = cap_logits((hidden @ weight.T if bias is None else hidden @ weight.T + bias).float() * scale, softcap)
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    logprob = logprobs.gather(-1, targets[:, None])[:, 0]
    smoothed = (1 - smoothing) * logprob + smoothing * logprobs.mean(-1)
    return TokenScores(smoothed, logprob >= logprobs.amax(-1), entropy.detach())


def cap_logits(logits: Tensor, softcap: float) -> Tensor:
    """Logits bounded softly by `softcap`; 0 leaves them as they are."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def chunks_of(rows: int, vocabulary: int) -> list[tuple[int, int]]:
    """Row ranges of nearly equal size whose float32 logits fit in `CHUNK_BYTES`."""
    count = max(1, -(-rows * vocabulary * 4 // CHUNK_BYTES))
    size = max(1, -(-rows // count))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Float32 logits of one chunk."""
    raw = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    logits = raw.float()
    return cap_logits(logits.mul_(scale) if scale != 1.0 else logits, softcap)


def _through_cap(gradient: Tensor, logits: Tensor, scale: float, softcap: float) -> Tensor:
    """Chain a gradient of the capped, scaled logits back to the product h·Wᵀ + b, in place."""
    if softcap:
        gradient.mul_(1 - (logits / softcap).square())
    return gradient.mul_(scale) if scale != 1.0 else gradient


@torch.library.custom_op("luthier::token_logprobs", mutates_args=())
def _score(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float,
    smoothing: float,
    entropy: bool,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward over chunks: (logprob [R], top1 [R], entropy [R or 0], what is kept, logprob without smoothing [R or 0]).

    `keep` says what: `direction`, ∂logprob/∂hidden [R, H]; `distribution`, the probabilities [R, V]; or nothing, [0, H].
    """
    rows = hidden.shape[0]
    logprob = hidden.new_empty(rows, dtype=torch.float32)
    top1 = torch.empty(rows, dtype=torch.bool, device=hidden.device)
    spread = hidden.new_empty(rows if entropy else 0, dtype=torch.float32)
    plain = hidden.new_empty(rows if smoothing else 0, dtype=torch.float32)
    kept = hidden.new_empty((rows if keep == "direction" else 0, hidden.shape[1]))
    for start, end in chunks_of(rows, weight.shape[0]):
        target = targets[start:end, None]
        logits = _logits(hidden[start:end], weight, bias, scale, softcap)
        said = logits.log_softmax(-1)
        chosen = said.gather(-1, target)
        logprob[start:end], top1[start:end] = chosen[:, 0], chosen[:, 0] >= said.amax(-1)
        if smoothing:
            plain[start:end] = chosen[:, 0]
            logprob[start:end] = torch.lerp(chosen[:, 0], said.mean(-1), smoothing)
        if entropy:
            spread[start:end] = -(said.exp() * said).sum(-1)
        if keep == "distribution":
            kept = said.exp_().to(weight.dtype)
        elif keep:
            error = said.exp_().scatter_add_(1, target, torch.full_like(chosen, smoothing - 1.0))  # p - 1 at the target
            if smoothing:
                error -= smoothing / weight.shape[0]
            error = _through_cap(error, logits, scale, softcap).to(weight.dtype)
            torch.mm(error, weight, out=kept[start:end])
    return logprob, top1, spread, kept.neg_() if keep == "direction" else kept, plain


@_score.register_fake
def _(hidden, weight, bias, targets, scale, softcap, smoothing, entropy, keep):  # type: ignore[no-untyped-def]
    rows = hidden.shape[0]
    distribution = hidden.new_empty((rows, weight.shape[0]))
    return (
        hidden.new_empty(rows, dtype=torch.float32),
        hidden.new_empty(rows, dtype=torch.bool),
        hidden.new_empty(rows if entropy else 0, dtype=torch.float32),
        distribution if keep == "distribution" else hidden.new_empty((rows if keep else 0, hidden.shape[1])),
        hidden.new_empty(rows if smoothing else 0, dtype=torch.float32),
    )


@torch.library.custom_op("luthier::token_logprobs_backward", mutates_args=())
def _score_backward(
    gradient: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logprob: Tensor,
    kept: Tensor,
    scale: float,
    softcap: float,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward with a trained head, logits computed again unless the distribution was kept.

    Returns:
        Gradients of hidden [R, H], weight [V, H] and bias [V or 0].
    """
    d_hidden = torch.empty_like(hidden)
    d_weight: Tensor | None = None
    d_bias = weight.new_zeros(0 if bias is None else weight.shape[0], dtype=torch.float32)
    for start, end in chunks_of(hidden.shape[0], weight.shape[0]):
        rows, upstream = hidden[start:end], gradient[start:end, None]
        logits = kept if len(kept) else _logits(rows, weight, bias, scale, softcap)
        d_logits = kept * -upstream.to(kept.dtype) if len(kept) else logits.softmax(-1).mul_(-upstream)
        missing = -torch.expm1(logprob[start:end, None])  # 1 - p, exact where p is nearly 1
        if smoothing:
            d_logits += (upstream * (smoothing / weight.shape[0])).to(d_logits.dtype)
            missing -= smoothing * (1 - 1 / weight.shape[0])
        d_logits.scatter_(1, targets[start:end, None], (missing * upstream).to(d_logits.dtype))
        d_product = _through_cap(d_logits, logits, scale, softcap).to(weight.dtype)
        torch.mm(d_product, weight, out=d_hidden[start:end])
        part = d_product.T @ rows
        d_weight = part if d_weight is None else d_weight.float().add_(part)  # several parts are added in float32
        if bias is not None:
            d_bias += d_product.float().sum(0)
    return d_hidden, torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype), d_bias.to(weight.dtype)


@_score_backward.register_fake
def _(gradient, hidden, weight, bias, targets, logprob, kept, scale, softcap, smoothing):  # type: ignore[no-untyped-def]
    return torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(0 if bias is None else weight.shape[0])


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, weight, bias, targets, ctx.scale, ctx.softcap, ctx.smoothing, _, ctx.keep = inputs
    ctx.mark_non_differentiable(*output[1:])
    if ctx.keep == "direction":
        ctx.save_for_backward(output[3])
    else:
        ctx.save_for_backward(hidden, weight, bias, targets, output[4] if ctx.smoothing else output[0], output[3])


def _backward(ctx, d_logprob, *_unused):  # type: ignore[no-untyped-def]
    if ctx.keep == "direction":
        (slope,) = ctx.saved_tensors
        return (slope * d_logprob[:, None].to(slope.dtype), *(None,) * 8)
    d_hidden, d_weight, d_bias = _score_backward(d_logprob, *ctx.saved_tensors, ctx.scale, ctx.softcap, ctx.smoothing)
    return d_hidden, d_weight, d_bias if ctx.needs_input_grad[2] else None, *(None,) * 6


_score.register_autograd(_backward, setup_context=_remember)
