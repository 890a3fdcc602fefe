r"""How likely a model finds given tokens, for many texts at once: the ground of perplexity and of questions with choices.

A *passage* is a token sequence, some tokens of which are asked about, each given all before it:

    log p(continuation | context) = Σ_t log p(x_t | x_<t),   t over the continuation's tokens

What is computed is less than that. The last token is never read, for nothing follows it. Passages with the same input are one: the four
letters behind a question with four choices cost one reading of the question. Inputs of like length share a pass, laid end to end where the
model isolates segments (`models.policy`), and only the asked positions reach the output head, in chunks
(`kernels.logprob`), so the [T, V] logits exist nowhere.

Where the context ends and the continuation begins is decided on tokens of the *whole* text, as lm-evaluation-harness does it: spaces at the
end of the context go to the continuation, the whole is tokenised, and as many tokens as the context has alone are its part. Pieces
tokenised apart would often be other tokens than the model has learnt. A text gets the tokens before it that plain calls of the
tokenizer give it (a BOS token, where there is one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import make_batch
from luthier.data.store import Header, TokenStore, memory_store
from luthier.kernels.logprob import token_logprobs
from luthier.models.head import evaluating
from luthier.models.policy import Policy

TOGETHER = 4096
"""Tokens that are read in one pass."""
Done = Callable[[int, int], None]
"""Called with how many are done, and how many there are."""


class Passage(NamedTuple):
    """What is asked.

    Args:
        tokens: int32 [N].
        asked: bool [N], which of them; never the first.
    """

    tokens: NDArray[np.int32]
    asked: NDArray[np.bool_]

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int]) -> Passage:
        """All tokens of a continuation, behind a context of at least one token."""
        asked = np.arange(len(context) + len(continuation)) >= len(context)
        return cls(np.array([*context, *continuation], np.int32), asked)

    def cut(self, longest: int) -> Passage:
        """What a model of `longest` positions can be asked: the end, for the last token is not read."""
        kept = Passage(self.tokens[-longest - 1 :], self.asked[-longest - 1 :].copy())
        kept.asked[0] = False
        return kept


class Likelihood(NamedTuple):
    """What the model says of a passage.

    Args:
        logprob: Σ log p of the asked tokens, in nats.
        greedy: each of them was the model's first choice.
        tokens: how many they are.
    """

    logprob: float
    greedy: bool
    tokens: int


@torch.no_grad()
def likelihoods(policy: Policy, passages: Sequence[Passage], *, longest: int, done: Done | None = None) -> list[Likelihood]:
    """How likely the asked tokens of each passage are.

    Args:
        policy: the model; its training mode is restored afterwards.
        passages: each with at least one asked token.
        longest: positions that the model reads; of a longer passage the end counts.
        done: hears of the progress, in passages.
    """
    cut = [passage.cut(longest) for passage in passages]
    ends = [int(np.flatnonzero(passage.asked)[-1]) if passage.asked.any() else 0 for passage in cut]
    owners: dict[bytes, list[int]] = {}
    for number, (passage, end) in enumerate(zip(cut, ends, strict=True)):
        owners.setdefault(passage.tokens[:end].tobytes(), []).append(number)
    owners.pop(b"", None)  # nothing asked, or cut away
    found = [Likelihood(0.0, True, 0)] * len(passages)
    inputs = [np.frombuffer(text, np.int32) for text in owners]
    members, ready = list(owners.values()), 0
    store = _store(inputs)
    with evaluating(policy.model):
        for together in _passes([len(tokens) for tokens in inputs]):
            asked = [number for row in together for number in members[row]]
            for number, said in zip(asked, _scored(policy, store, together, members, cut), strict=True):
                found[number] = said
            ready += len(asked)
            if done:
                done(ready, len(passages))
    return found


def windows(tokens: Sequence[int], first: int, longest: int) -> Iterator[Passage]:
    """A long text as passages that together ask about each token of it once.

    The first asks about the first `longest` tokens behind `first`; each later one about the next `longest`, the last of them
    with as much before it as fits.

    Args:
        tokens: of the text.
        first: the token that stands before it.
        longest: tokens that the model reads.
    """
    for begin in range(0, len(tokens), longest):
        end = min(begin + longest, len(tokens))
        before = max(0, end - longest) - 1
        context = [first] if begin == 0 else list(tokens[before:begin])
        yield Passage.of(context, tokens[begin:end])


def _scored(
    policy: Policy, store: TokenStore, together: Sequence[int], members: Sequence[Sequence[int]], passages: Sequence[Passage]
) -> Iterator[Likelihood]:
    """What one pass says of all passages of its inputs."""
    batch = make_batch(store, together).to(policy.device)
    rows, targets, sizes = [], [], []
    for begin, row in zip(batch.cu_seqlens.tolist(), together, strict=False):
        for number in members[row]:
            places = np.flatnonzero(passages[number].asked)
            rows.append(begin + places - 1)
            targets.append(passages[number].tokens[places])
            sizes.append(len(places))
    states = policy.hidden(batch, packing=True).index_select(0, _long(rows, policy.device))
    head = policy.head.at(1 / policy.temperature)
    said = token_logprobs(
        states, head.weight, _long(targets, policy.device), bias=head.bias, scale=head.scale, softcap=head.softcap
    )
    logprob, top = said.logprob.double().cpu().numpy(), said.top1.cpu().numpy()
    for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        yield Likelihood(float(logprob[end - size : end].sum()), bool(top[end - size : end].all()), size)


def _long(pieces: Sequence[NDArray[np.integer]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64)).to(device)


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Inputs that are read together: of like length, at most `TOGETHER` tokens unless one alone has more."""
    together: list[int] = []
    size = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if together and size + lengths[row] > TOGETHER:
            yield together
            together, size = [], 0
        together.append(row)
        size += lengths[row]
    if together:
        yield together


def _store(rows: Sequence[NDArray[np.int32]]) -> TokenStore:
    """Token sequences as a store in memory."""
    count = len(rows)
    tokens = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    columns = {
        "tokens": tokens,
        "weight": np.zeros(len(tokens)),
        "offsets": np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
        **dict.fromkeys(("example", "group", "line"), np.arange(count)),
        **dict.fromkeys(("source", "file"), np.zeros(count)),
        "label": np.full(count, -1),
    }
    return memory_store(Header("memory", "pt", None, 0, 0, 0, ()), columns)
