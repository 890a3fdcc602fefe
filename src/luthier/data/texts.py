"""A conversation as the text of a segment: what the template writes, which of it is learnt, and which of it is letters after all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from luthier.chat import ChatTemplate
from luthier.chat.ladder import Span
from luthier.chat.marks import Place
from luthier.chat.render import TemplateTooSlow
from luthier.chat.sandbox import SECONDS
from luthier.chat.template import TrainOn
from luthier.data.control_tokens import ControlTokens
from luthier.data.examples import Message
from luthier.errors import UserError

PATIENCE = 3
"""Conversations for which a template may run out of time before that ends the command."""


class Text(NamedTuple):
    """One segment before tokenisation.

    Args:
        text: the whole of it.
        spans: learnt characters as (begin, end, weight), in order.
        rung: how the template found them.
        answers: where `infer_seqlen` finds the answers, learnt or not.
        letters: places where control tokens are written that are letters.
        label: of a preference 1 for the better answer and 0 for the worse one, of feedback 1 for liked and 0 for not, else -1.
    """

    text: str
    spans: tuple[Span, ...]
    rung: str
    answers: tuple[Span, ...] = ()
    letters: tuple[Place, ...] = ()
    label: int = -1


def supervised(
    template: ChatTemplate,
    control: ControlTokens,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None,
    train_on: TrainOn,
    **choices: Any,
) -> list[Text]:
    """The segments of a conversation; control tokens in its messages are letters.

    Raises:
        TemplateRefused: see `ChatTemplate.supervise`, which takes the further choices.
        UserError: the template ran out of time, and not for the first time: all data would take days.
    """
    hides = control.are_in(messages, tools)
    if hides:
        messages, tools = control.hidden(messages), control.hidden(tools)
    try:
        found = template.supervise(messages, tools, train_on, **choices)
    except TemplateTooSlow as error:
        template.too_slow += 1
        if template.too_slow < PATIENCE:
            raise
        what = f"`{template.name}` takes longer than {SECONDS:g} seconds for a conversation, and this is number {PATIENCE}"
        hint = "Choose another template, or take out the longest conversations."
        raise UserError(what, where="data.template", hint=hint) from error
    if not hides:
        return [Text(item.text, joined(item.spans), item.rung) for item in found]
    texts: list[Text] = []
    for item in found:
        text, spans, letters = control.shown(item.text, joined(item.spans))
        texts.append(Text(text, spans, item.rung, letters=letters))
    return texts


def joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans, those drawn together that touch and weigh the same."""
    result: list[Span] = []
    for begin, end, weight in spans:
        if result and result[-1][1] == begin and result[-1][2] == weight:
            result[-1] = (result[-1][0], end, weight)
        else:
            result.append((begin, end, weight))
    return tuple(result)


def written(
    template: ChatTemplate,
    control: ControlTokens,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    **extra: Any,
) -> tuple[str, tuple[Place, ...]]:
    """A conversation up to where the answer begins, and the places in it where control tokens are letters; `extra` is for the template.

    Raises:
        TemplateRefused: see `ChatTemplate.render`.
    """
    if not control.are_in(messages, tools):
        return template.render(messages, tools, add_generation_prompt=True, **extra), ()
    hidden = template.render(control.hidden(messages), control.hidden(tools), add_generation_prompt=True, **extra)
    text, _, letters = control.shown(hidden)
    return text, letters
