r"""How far a student's distributions are from a teacher's, token by token, without ever holding the full logits.

With the teacher's distribution P and the student's Q over V tokens, both softened by a temperature τ (softmax of logits / τ):

    forward   KL(P ‖ Q)      the student covers all that the teacher may say              Hinton et al. 2015 (arXiv:1503.02531)
    reverse   KL(Q ‖ P)      the student keeps to what the teacher would say              Gu et al. 2023 (arXiv:2306.08543)
    jsd       β KL(P ‖ M) + (1 - β) KL(Q ‖ M),  M = β P + (1 - β) Q     between the two   Agarwal et al. 2023 (arXiv:2306.13649)

Hinton's factor τ² is left out, as in later work; a learning rate makes up for it.

R rows are worked through in chunks, so that at most `CHUNK_BYTES` of each matrix of logits exist at a time. With a frozen output head the
gradient of each row with respect to its hidden state, an [R, H] tensor, is computed in the forward pass, while the logits are at hand;
with a trained head a chunk is computed again in the backward pass. `divergence_reference` is the definition.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.kernels.logprob import cap_logits, chunks_of

Kind = Literal["forward", "reverse", "jsd"]


class Side(NamedTuple):
    """Hidden states and the output head that reads them.

    Args:
        hidden: [R, H], after the model's last norm.
        weight: [V, H].
        bias: [V] or None.
        scale: multiplier of the logits.
        softcap: bound of the logits; 0 is none.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def rows(self, begin: int, end: int) -> Side:
        """Some of the rows."""
        return self._replace(hidden=self.hidden[begin:end])

    def logprobs(self, temperature: float, vocabulary: int) -> Tensor:
        """Float32 log-probabilities [R, vocabulary] over the first so many tokens."""
        weight, bias = self.weight[:vocabulary], None if self.bias is None else self.bias[:vocabulary]
        logits = torch.nn.functional.linear(self.hidden, weight, bias).float() * self.scale
        return (cap_logits(logits, self.softcap) / temperature).log_softmax(-1)


def divergence(student: Side, teacher: Side, *, kind: Kind = "forward", beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """The divergence at each of R positions, float32 [R] in nats, differentiable in the student.

    Args:
        student: what learns.
        teacher: at the same positions; without gradient. Its width H may be another, and of the longer vocabulary the rest is left out.
        kind: see above.
        beta: share of the teacher in the mixture of `jsd`.
        temperature: τ.
    """
    vocabulary = min(len(student.weight), len(teacher.weight))
    trained = student.weight.requires_grad or (student.bias is not None and student.bias.requires_grad)
    frozen = torch.is_grad_enabled() and student.hidden.requires_grad and not trained
    parts: list[Tensor] = []
    for begin, end in chunks_of(len(student.hidden), 2 * vocabulary):
        ours, theirs = student.rows(begin, end), teacher.rows(begin, end)
        settings = (theirs, kind, beta, temperature, vocabulary)
        if frozen:
            parts.append(_Frozen.apply(ours.hidden, ours, settings))
        else:
            parts.append(checkpoint(_of_chunk, ours, *settings, use_reentrant=False))
    return torch.cat(parts)


def divergence_reference(
    student: Side, teacher: Side, *, kind: Kind = "forward", beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """The plain definition of `divergence`, with full logits."""
    return _of_chunk(student, teacher, kind, beta, temperature, min(len(student.weight), len(teacher.weight)))


def _of_chunk(student: Side, teacher: Side, kind: Kind, beta: float, temperature: float, vocabulary: int) -> Tensor:
    q = student.logprobs(temperature, vocabulary)
    with torch.no_grad():
        p = teacher.logprobs(temperature, vocabulary)
    if kind == "forward":
        return _kl(p, q)
    if kind == "reverse":
        return _kl(q, p)
    shares = torch.tensor([beta, 1 - beta], device=q.device).log()
    mixture = torch.logaddexp(p + shares[0], q + shares[1])
    return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(P ‖ Q) of log-probabilities [R, V]."""
    return (p.exp() * (p - q)).sum(-1)


class _Frozen(torch.autograd.Function):
    """A chunk whose output head is frozen: its gradient is taken at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, student: Side, settings: tuple[Any, ...]) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            values = _of_chunk(student._replace(hidden=leaf), *settings)
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        ctx.save_for_backward(slope)
        return values.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0][:, None].to(slope.dtype), None, None
