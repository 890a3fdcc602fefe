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
_LAST_WORD = re.compile(r"(<[^<>\s]+>|[^<>\n]+?)(\s*)$")
_BEGINS = re.compile("start|begin|user|assistant|system|chatbot", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template writes around an answer.

    Args:
        openers: texts between a question and its answer, each with the number of characters at its end that the model writes.
        header: the part of the opener that comes with the answer, not with the question, and is not the model's.
        closers: texts right after an answer that end the turn, longest first; none if the template writes none.
        footer: what it writes after the closer of the last answer (some prompt for the next one without being asked).
        end_of_turn: the token with which the last answer ends, or one in the conversation if the last has none.
        next_turn: where a template has no closer, the beginning of what follows an answer.
        prompts: whether it has a generation prompt at all.
    """

    openers: tuple[tuple[str, int], ...] = ()
    header: str = ""
    closers: tuple[str, ...] = ()
    footer: str = ""
    end_of_turn: str = ""
    next_turn: str = ""
    prompts: bool = True


def find_shape(render: Renderer, eos_token: str) -> Shape:
    """Probe a template.

    Args:
        render: `render(messages, add_generation_prompt=…) -> str`.
        eos_token: the tokenizer's end-of-sequence token, or an empty text.

    Returns:
        The shape; an empty one if the template refuses the probes.
    """
    try:
        asked, unasked = render(_probe(1), add_generation_prompt=True), render(_probe(1))
        short, long = render(_probe(2)), render(_probe(4))
    except TemplateRefused:
        return Shape()
    between = [_between(text, _QUESTIONS[0], _ANSWERS[0]) for text in (short, long)]
    last, middle = short.partition(_ANSWERS[0])[2], _between(long, _ANSWERS[0], _QUESTIONS[1])
    opener = between[0]
    if opener is None or middle is None:
        return Shape()
    question, prompt = (text.partition(_QUESTIONS[0])[2] for text in (unasked, asked))
    openers = {text: _own(text, prompt, asked != unasked) for text in between if text is not None}
    final, inner = _closers(last, middle, eos_token)
    return Shape(
        openers=tuple(openers.items()),
        header=opener[len(question) : len(opener) - openers[opener]] if opener.startswith(question) else "",
        closers=tuple(sorted({final, inner} - {""}, key=len, reverse=True)),
        footer=last[len(final) :].strip(),
        end_of_turn=_first_token(final or inner, eos_token),
        next_turn="" if final or inner else middle.strip().partition("\n")[0],
        prompts=asked != unasked,
    )


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


def _own(opener: str, prompt: str, prompts: bool) -> int:
    """How many characters at the end of an opener the model writes: those that the prompt does not hold.

    Args:
        opener: what stands between a question and its answer.
        prompt: what stands after a question when an answer is asked for.
        prompts: whether that differs from what stands there otherwise; if not, only whitespace is taken for the model's.
    """
    rest = opener[_common(opener, prompt) :]
    sign = _LAST_WORD.search(prompt)
    if prompts and sign and sign[1] in rest:  # the prompt says something else, or spaces otherwise, before the same header
        rest = rest.rpartition(sign[1])[2]
        rest = rest[_common(rest, sign[2]) :]
    return len(rest) if prompts or not rest.strip() else 0


def _closers(last: str, middle: str, eos_token: str) -> tuple[str, str]:
    """The special tokens that end the last answer, and those that end one inside the conversation; empty where there are none."""
    final = _ending(last, eos_token)
    common = _common(final, middle)
    ends = [end for end in _ends(final, eos_token) if end <= common]
    inner = middle[: ends[-1]] if ends else middle[: next(iter(_ends(_ending(middle, eos_token), eos_token)), 0)]
    return final, inner


def _ending(text: str, eos_token: str) -> str:
    """The special tokens that a text begins with, up to one that looks like the beginning of something."""
    ends = _ends(text, eos_token)
    return text[: ends[-1]] if ends else ""


def _ends(text: str, eos_token: str) -> list[int]:
    """Where each of the special tokens ends that a text begins with."""
    token, ends = re.compile(rf"\s*({re.escape(eos_token)}|{_TOKEN})" if eos_token else rf"\s*({_TOKEN})"), [0]
    while (match := token.match(text, ends[-1])) and (match[1] == eos_token or not _BEGINS.search(match[1])):
        ends.append(match.end())
    return ends[1:]


def _first_token(closer: str, eos_token: str) -> str:
    return closer[: next(iter(_ends(closer, eos_token)), 0)].strip()
