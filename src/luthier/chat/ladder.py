"""The mask ladder: which characters of a rendered conversation are learnt.

An answer's span reaches from where the model begins to write to the end-of-turn token that it must learn to write, if the
template writes one. Each rung either proves its spans or leaves them to the next:

- `markers`    the template says it itself, with `{% generation %}`; exactly what the markers enclose, unless it rewrites history.
- `twin`       one of our own templates, which has markers, writes the very same text for this conversation.
- `sentinels`  marks around the assistant's fields of the one rendering; taking them out must give the same text, and none may
               be lost.
- `prefixes`   the conversation up to an answer, with the generation prompt, and up to its end are both prefixes of the text.
- `unrolled`   the template rewrites history (it drops earlier thinking, say): one segment for each answer, which ends with it.

What none of them can do is refused: a wrong mask is worse than a missing example.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from luthier.chat.marks import NONCHARACTERS, Field, Marker, Place, unmark
from luthier.chat.render import REASONING, Block, Message, Program, TemplateRefused, prepared
from luthier.chat.shape import Shape
from luthier.chat.thinking import around, thought_of

Span = tuple[int, int, float]
Targets = Mapping[int, float]
"""Index of an assistant message → its weight."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One segment as text.

    Args:
        text: the whole rendering.
        spans: learnt parts as (begin, end, weight), in characters, in order; what is outside has weight 0.
        rung: how they were found: markers, twin, sentinels, prefixes, unrolled or all.
    """

    text: str
    spans: tuple[Span, ...]
    rung: str


@dataclass(frozen=True, slots=True)
class View:
    """A template with everything it needs but the messages; its shape is only looked for when a rung asks.

    `rewrites`: it is known that an earlier question may look different once a later one follows it.
    """

    program: Program
    variables: Mapping[str, Any]
    now: datetime | None
    shape: Callable[[], Shape] = Shape
    rewrites: bool = False

    def blocks(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> tuple[str, list[Block]]:
        """Render; the text and its generation blocks."""
        names = {"add_generation_prompt": add_generation_prompt, **self.variables, "messages": prepared(messages)}
        return self.program.run(names, self.now)

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Render; the text alone."""
        return self.blocks(messages, add_generation_prompt=add_generation_prompt)[0]


def thoughts(view: View, messages: Sequence[Message], text: str) -> list[Place]:
    """Where the thoughts of the answers stand in a rendering, tags included.

    Raises:
        TemplateRefused: marks around them change the text, so they cannot be told apart from it.
    """
    marker = Marker()
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant" and thought_of(message)]
    clean, places = unmark(view.text(marker.mark(messages, turns)))
    if clean != text:
        raise TemplateRefused("its thoughts cannot be told apart from its answers")
    found = (place for number, place in places.items() if marker.fields[number].kind == "reasoning")
    return sorted(around(text, *place) for place in found)


class _NextRung(Exception):
    """This rung cannot prove its spans."""


def climb(view: View, twin: Callable[[], View | None], messages: Sequence[Message], targets: Targets) -> list[Rendered]:
    """Find the spans of the target turns, by the first rung that can prove them.

    Args:
        view: the template.
        twin: gives one of our own templates that usually writes the same, if there is one.
        messages: the conversation.
        targets: the assistant messages to find. Spans of weight 0 are found as well, but get no segment of their own.

    Raises:
        TemplateRefused: the template refuses the conversation, or no rung holds.
    """
    text, blocks = view.blocks(messages)
    if blocks and (reason := _rewritten(view, messages, targets, text)):
        return _unroll(view, messages, targets, reason)
    if blocks:
        return [_marked(view, messages, targets, text, blocks)]
    if (other := twin()) and (found := _by_twin(other, messages, targets, text)):
        return [Rendered(text, _spans(found, targets), "twin")]
    try:
        return [_one_segment(view, messages, targets, text)]
    except _NextRung as failure:
        return _unroll(view, messages, targets, str(failure))


def _marked(view: View, messages: Sequence[Message], targets: Targets, text: str, blocks: list[Block]) -> Rendered:
    return Rendered(text, _spans(_by_markers(view, messages, targets, blocks), targets), "markers")


def _rewritten(view: View, messages: Sequence[Message], targets: Targets, text: str) -> str:
    """Why the whole text is not what the model saw when it gave each of these answers; empty if it is, as far as is known."""
    for turn in targets:
        thought = thought_of(messages[turn]).strip()
        if thought and thought not in text and thought in view.text(messages[: turn + 1]):
            return f"the template drops the reasoning of message {turn + 1} from history"
        if view.rewrites and _prompt(view, messages, turn, text) is None:
            return f"the template writes what comes before message {turn + 1} otherwise than it stood when it was written"
    return ""


def _one_segment(view: View, messages: Sequence[Message], targets: Targets, text: str) -> Rendered:
    """The spans within one text, by sentinels or else by prefixes; the sentinels' reason tells more, so it is the one given."""
    try:
        return Rendered(text, _spans(_by_sentinels(view, messages, targets, text), targets), "sentinels")
    except _NextRung as failure:
        try:
            return Rendered(text, _spans(_by_prefixes(view, messages, targets, text), targets), "prefixes")
        except _NextRung:
            raise failure from None


def _spans(found: Sequence[tuple[int, Place]], targets: Targets) -> tuple[Span, ...]:
    return tuple((begin, end, targets[turn]) for turn, (begin, end) in found if begin < end and turn in targets)


def _by_markers(view: View, messages: Sequence[Message], targets: Targets, blocks: list[Block]) -> list[tuple[int, Place]]:
    """Give each generation block to its turn.

    One block for each assistant message, in order, is the usual case. Otherwise (a block more for the last token, or none for
    a message) marks tell whose a block is, and a block without any belongs to the turn before it.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(blocks) == len(turns):
        return list(zip(turns, blocks, strict=True))
    if len(targets) == len(turns) and len(set(targets.values())) == 1:
        return [(turns[0], block) for block in blocks]
    marker = Marker()
    raw, marked = view.blocks(marker.mark(messages, turns))
    if len(marked) != len(blocks):
        raise TemplateRefused("its generation blocks cannot be told apart")
    owner, owned = turns[0], []
    for block, (begin, end) in zip(blocks, marked, strict=True):
        inside = unmark(raw[begin:end])[1]
        owner = marker.fields[min(inside)].turn if inside else owner
        owned.append((owner, block))
    return owned


def _by_twin(twin: View, messages: Sequence[Message], targets: Targets, text: str) -> list[tuple[int, Place]] | None:
    try:
        twin_text, blocks = twin.blocks(messages)
    except TemplateRefused:
        return None
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if twin_text != text or len(blocks) != len(turns):
        return None
    found = list(zip(turns, blocks, strict=True))
    return found if all(_holds(text[begin:end], messages[turn]) for turn, (begin, end) in found if turn in targets) else None


def _holds(span: str, message: Message) -> bool:
    """Whether a span has all that the message says, whitespace aside."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    said = [*(message.get(name) for name in ("content", *REASONING)), *(call.get("name") for call in calls)]
    texts = [text for text in said if isinstance(text, str)]
    return all(_squeezed(text) in _squeezed(span) for text in texts)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _by_sentinels(view: View, messages: Sequence[Message], targets: Targets, text: str) -> list[tuple[int, Place]]:
    if NONCHARACTERS.search(text):
        raise _NextRung("the text holds Unicode noncharacters")
    marker = Marker()
    marked = marker.mark(messages, targets)
    try:
        clean, places = unmark(view.text(marked))
    except TemplateRefused:
        raise _NextRung("the template handles the text of an answer, it does not just write it") from None
    if clean != text:
        raise _NextRung("the template handles the text of an answer, it does not just write it")
    for number, field in enumerate(marker.fields):
        if number not in places:
            _excuse(view, marked, number, field)
    found: list[tuple[int, Place]] = []
    for turn in targets:
        parts = [(places[n], field) for n, field in enumerate(marker.fields) if field.turn == turn and n in places]
        parts.sort(key=lambda part: part[0])
        span = (_begin(view, messages, turn, text, parts[0]), _end(view, messages, turn, text, parts[-1])) if parts else (0, 0)
        if not parts or (found and span[0] < found[-1][1][1]):
            raise _NextRung(f"the template does not write message {turn + 1} in its place")
        found.append((turn, span))
    return found


def _excuse(view: View, marked: Sequence[Message], number: int, field: Field) -> None:
    """A mark is lost: pass over it only if it is reasoning, and the template never writes reasoning."""
    written = len(marked) > field.turn + 1 and number in unmark(view.text(marked[: field.turn + 1]))[1]
    if written:
        raise _NextRung(f"the template drops the {field.kind} of message {field.turn + 1} from history")
    if field.kind != "reasoning":
        raise _NextRung(f"the template does not write the {field.kind} of message {field.turn + 1}")


def _begin(view: View, messages: Sequence[Message], turn: int, text: str, first: tuple[Place, Field]) -> int:
    """Where the model begins to write this turn, whose first field stands at `first`."""
    (begin, _), field = first
    for opener, own in view.shape().openers:
        if text.endswith(opener, 0, begin):
            return begin - own
    before = _prompt(view, messages, turn, text)
    if before is not None and before <= begin:
        return before
    if field.kind == "tool call":
        raise _NextRung(f"the beginning of message {turn + 1}, a tool call, cannot be told")
    return begin


def _prompt(view: View, messages: Sequence[Message], turn: int, text: str) -> int | None:
    """Length of the text before what the model writes in a turn, or None where that cannot be told.

    It is the conversation so far with the generation prompt, or with the header of an answer: a template may prompt with more
    than it keeps in history, such as the beginning of a thought.
    """
    shape = view.shape()
    ways = [(True, "")] * shape.prompts + [(False, shape.header)] * bool(shape.header or not shape.prompts)
    for prompts, header in ways:
        try:
            before = view.text(messages[:turn], add_generation_prompt=prompts) + header
        except TemplateRefused:
            return None
        if text.startswith(before):
            return len(before)
    return None


def _end(view: View, messages: Sequence[Message], turn: int, text: str, last: tuple[Place, Field]) -> int:
    """Where this turn, whose last field stands at `last`, ends: after its end-of-turn token, if there is one."""
    (_, end), field = last
    if field.kind == "content" and not messages[turn].get("tool_calls"):
        after = len(text) - len(text[end:].lstrip())
        for closer in view.shape().closers:
            for position in (end, after):
                if text.startswith(closer, position):
                    return position + len(closer)
        if not view.shape().closers:
            return end
    whole = _until(view, messages, turn, text)
    if whole is None or whole < end or _begins_again(view, text[end:whole], messages[turn]):
        raise _NextRung(f"the end of message {turn + 1} cannot be told")
    return whole


def _until(view: View, messages: Sequence[Message], turn: int, text: str) -> int | None:
    """Length of the text up to the end of a turn, if the conversation up to there is a prefix of it."""
    whole = view.text(messages[: turn + 1]).rstrip().removesuffix(view.shape().footer)
    return len(whole) if text.startswith(whole) else None


def _begins_again(view: View, written: str, message: Message) -> bool:
    """Whether the template writes a second header inside a turn (an empty answer after a tool call, say)."""
    header = view.shape().header.strip()
    return bool(header) and header in written and header not in str(message.get("content"))


def _by_prefixes(view: View, messages: Sequence[Message], targets: Targets, text: str) -> list[tuple[int, Place]]:
    found: list[tuple[int, Place]] = []
    for turn in targets:
        before, after = _prompt(view, messages, turn, text), _until(view, messages, turn, text)
        if before is None or after is None:
            raise _NextRung("the conversation up to an answer is no prefix of the whole")
        span = text[before:after]
        if not _holds(span, messages[turn]) or _begins_again(view, span, messages[turn]):
            raise _NextRung(f"the template does not write message {turn + 1} as it is")
        found.append((turn, (before, after)))
    return found


def _unroll(view: View, messages: Sequence[Message], targets: Targets, reason: str) -> list[Rendered]:
    """One segment for each answer: the conversation up to it, in which only it is learnt."""
    learnt = [turn for turn, weight in targets.items() if weight]
    segments = []
    for turn in learnt:
        if turn + 1 == len(messages) and len(targets) == 1:
            raise TemplateRefused(reason)
        until = messages[: turn + 1]
        try:
            text, blocks = view.blocks(until)
            find = _marked(view, until, {turn: targets[turn]}, text, blocks) if blocks else None
            segment = find or _one_segment(view, until, {turn: targets[turn]}, text)
        except _NextRung as failure:
            raise TemplateRefused(str(failure)) from None
        segments.append(Rendered(segment.text, segment.spans, "unrolled"))
    return segments
