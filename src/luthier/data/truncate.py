"""What is left of a conversation that is longer than `max_length`.

Two ways of cutting need more than a number of tokens, and live here:

`turns` leaves out whole exchanges, the oldest first, until the rest fits: a question with all that follows it up to the next
question is one exchange. System messages at the front stay, so does the last exchange that has something to learn. The rest is put
through the template anew, because a template may write the first exchange in another way than the others (Llama-2 puts the system
prompt into it). The fewest exchanges possible are left out; a guess by characters finds their number in two or three renderings.

`infer_seqlen` gives the token counts of LLaMA-Factory's function of that name, for those who compare runs: each question and
its answer share what is left of the budget, and each is cut at its end. With `L` tokens left, a question of `s` and an answer of `t`:

    t' = min(t, L)                    if 2t < L    a short answer stays whole,
         min(t, L - s)                if 2s < L    else a short question does,
         min(t, ⌊L · t / (s + t)⌋)    else         else both give in proportion;
    s' = min(s, L - t').

Exchanges take their share in order, or from the last one backwards where only the last answer is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from luthier.data.examples import Message

Fits = Callable[[int], bool]
"""Whether a conversation fits without its first so many exchanges."""


def exchanges(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """How many system messages stand at the front, and where each exchange begins.

    A new exchange begins at a user's message that does not follow another one; what stands before the first user's message (a
    greeting, say) is an exchange of its own.
    """
    front = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    begins = [
        index
        for index in range(front, len(messages))
        if index == front or (messages[index]["role"] == "user" and messages[index - 1]["role"] != "user")
    ]
    return front, begins


def without_oldest(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """The conversation without its first `count` exchanges; the system messages at its front stay."""
    front, begins = exchanges(messages)
    return (*messages[:front], *messages[begins[count] :])


def droppable(messages: Sequence[Message]) -> int:
    """How many exchanges may go: all before the one that holds the last answer to learn."""
    learnt = [i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight") != 0]
    return sum(begin <= learnt[-1] for begin in exchanges(messages)[1]) - 1 if learnt else 0


def fewest_dropped(messages: Sequence[Message], most: int, *, excess: float, fits: Fits) -> int:
    """The smallest number of exchanges, from 1 to `most`, without which the conversation fits; `most` if it never does.

    Args:
        messages: the conversation.
        most: see `droppable`; at least 1.
        excess: share of the text that is too much, from which the first guess is made.
        fits: asked about a few numbers near the guess.
    """
    begins = [*exchanges(messages)[1], len(messages)]
    sizes = [sum(len(str(message.get("content"))) for message in messages[a:b]) for a, b in pairwise(begins)]
    enough = np.flatnonzero(np.cumsum(sizes) >= excess * sum(sizes))
    count = min(most, int(enough[0]) + 1) if len(enough) else most
    while count < most and not fits(count):
        count += 1
    while count > 1 and fits(count - 1):
        count -= 1
    return count


def infer_seqlen(source: int, target: int, budget: int) -> tuple[int, int]:
    """Tokens kept of a question and of its answer, by the formula above."""
    if 2 * target < budget:
        kept = min(target, budget)
    elif 2 * source < budget:
        kept = min(target, budget - source)
    else:
        kept = min(target, budget * target // (source + target))
    return min(source, max(budget - kept, 0)), kept


def shared_out(answers: Sequence[tuple[int, int]], budget: int, *, backwards: bool) -> NDArray[np.int64]:
    """Indices of the tokens that `infer_seqlen` keeps, ascending.

    Args:
        answers: begin and end of each answer in tokens; the question is what lies between it and the answer before.
        budget: most tokens in all.
        backwards: the last exchange takes its share first.
    """
    ends = [0, *(end for _, end in answers)]
    turns = [(before, begin, end) for before, (begin, end) in zip(ends, answers, strict=False)]
    kept: list[NDArray[np.int64]] = []
    for before, begin, end in reversed(turns) if backwards else turns:
        if budget <= 0:
            break
        source, target = infer_seqlen(begin - before, end - begin, budget)
        kept.append(np.concatenate([np.arange(before, before + source), np.arange(begin, begin + target)]))
        budget -= source + target
    return np.sort(np.concatenate(kept)).astype(np.int64)
