"""The shape of an unknown template: what it writes before an answer, and what after it.

Found by rendering two probes, a question with an answer and two of each, whose contents are words that no template contains.
Between the first question and the first answer stands the *opener*; how much of it the generation prompt already holds tells
where the model begins to write (the rest, a space or an empty thinking block, is the model's own). After an answer stands the
*closer*: the special tokens with which the model says that it is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.chat.render import Message, TemplateRefused

Renderer = Callable[..., str]

_QUESTIONS, _ANSWERS = ("firstquestion", "secondquestion"), ("firstanswer", "secondanswer")
_TOKEN = r"(?:<[^<>\s]+>|\[/?[A-Z_]+\])"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template writes around an answer.

    Args:
        openers: texts between a question and its answer, each with the number of characters at its end that the model writes.
        header: the part of the opener that comes with the answer, not with the question, and is not the model's.
        closers: texts right after an answer that end the turn, longest first; none if the template writes none.
        next_turn: where a template has no closer, the beginning of what follows an answer.
        prompts: whether it has a generation prompt at all.
    """

    openers: tuple[tuple[str, int], ...] = ()
    header: str = ""
    closers: tuple[str, ...] = ()
    next_turn: str = ""
    prompts: bool = True

    @property
    def ends(self) -> tuple[str, ...]:
        """The first token of each closer: what the model writes when it is done."""
        return tuple(re.split(r"(?<=[>\]])", closer.strip(), maxsplit=1)[0] for closer in reversed(self.closers))


def find_shape(render: Renderer, eos_token: str) -> Shape:
    """Probe a template.

    Args:
        render: `render(messages, add_generation_prompt=…) -> str`.
        eos_token: the tokenizer's end-of-sequence token, or an empty text.

    Returns:
        The shape; an empty one if the template refuses the probes.
    """
    try:
        long, asked, unasked = render(_probe(4)), render(_probe(1), add_generation_prompt=True), render(_probe(1))
        short = render(_probe(2))
    except TemplateRefused:
        return Shape()
    between = [_between(text, _QUESTIONS[0], _ANSWERS[0]) for text in (short, long)]
    last, middle = short.partition(_ANSWERS[0])[2], _between(long, _ANSWERS[0], _QUESTIONS[1])
    if None in between or middle is None:
        return Shape()
    prompt = asked.partition(_QUESTIONS[0])[2]
    openers = tuple(dict.fromkeys(_opener(text, prompt, asked != unasked) for text in between if text is not None))
    opener, own = openers[0]
    asked_alone = unasked.partition(_QUESTIONS[0])[2]
    header = opener[len(asked_alone) : len(opener) - own] if opener.startswith(asked_alone) else ""
    closers = _closers(last, middle, eos_token)
    return Shape(openers, header, closers, "" if closers else middle.strip().partition("\n")[0], asked != unasked)


def _probe(length: int) -> Sequence[Message]:
    turns = [{"role": "user", "content": _QUESTIONS[0]}, {"role": "assistant", "content": _ANSWERS[0]}]
    turns += [{"role": "user", "content": _QUESTIONS[1]}, {"role": "assistant", "content": _ANSWERS[1]}]
    return turns[:length]


def _common(left: str, right: str) -> int:
    """Length of what two texts begin with in common, not counting a tag that only begins alike."""
    length = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    tag = left.rfind("<", 0, length)
    return tag if tag > left.rfind(">", 0, length) else length


def _between(text: str, left: str, right: str) -> str | None:
    rest = text.partition(left)[2]
    return rest[: rest.index(right)] if right in rest else None


def _opener(opener: str, prompt: str, prompts: bool) -> tuple[str, int]:
    """The opener with the length of what the model itself writes of it.

    `prompts` tells whether the template has a generation prompt. Without one, only whitespace is taken for the model's.
    """
    rest = opener[_common(opener, prompt) :]
    return opener, len(rest) if prompts or not rest.strip() else 0


def _closers(last: str, middle: str, eos_token: str) -> tuple[str, ...]:
    """The special tokens after the last answer, and after one inside the conversation, longest first."""
    token = f"(?:{re.escape(eos_token)}|{_TOKEN})" if eos_token else _TOKEN
    if not re.fullmatch(rf"(?:\s*{token})+\s*", last):
        return ()
    found = {last.rstrip()}
    length = _common(last.rstrip(), middle)
    whole = [match.end() for match in re.finditer(rf"\s*{token}", last) if match.end() <= length]
    if whole:
        found.add(middle[: whole[-1]])
    elif match := re.match(rf"\s*{token}", middle):
        found.add(match[0])
    return tuple(sorted(found, key=len, reverse=True))
