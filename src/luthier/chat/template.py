"""`ChatTemplate`: one template with its variables, for asking (`render`) and for learning (`supervise`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from luthier.chat.families import Family, alike, by_any_name
from luthier.chat.ladder import Rendered, Span, View, climb, thoughts
from luthier.chat.render import Message, Program, TemplateRefused, compiled, plain
from luthier.chat.shape import Shape, find_shape
from luthier.chat.thinking import KEEP, NO_THOUGHTS, Thinking, stripped, thought_of, without, without_thought
from luthier.chat.tools import Answer, parse, recognise
from luthier.errors import UserError, did_you_mean

TrainOn = Literal["assistant", "all", "last"]

TRAINING_DAY = datetime(2024, 7, 26)
"""What `strftime_now` tells while learning: Llama's own default date. Were it the clock, the same data would give other tokens
tomorrow, and a run could not be resumed."""


_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]},
    },
}


class ChatTemplate:
    """A chat template with the variables of its tokenizer.

    Args:
        name: how people call it.
        source: the Jinja text.
        variables: names besides the messages, such as `bos_token` and `eos_token`.
        family: the shipped family it is, if any.
        note: what should be said about the choice, if anything.

    Attributes:
        too_slow: conversations for which it ran out of time while learning.

    Raises:
        UserError: the source is no valid Jinja.
    """

    def __init__(
        self, name: str, source: str, variables: Mapping[str, str], *, family: Family | None = None, note: str | None = None
    ) -> None:
        self.name, self.source, self.note, self.family = name, source, note, family
        self.variables = dict(variables)
        self._program: Program = compiled(source)
        self._shapes: dict[tuple[str, bool], Shape] = {}
        self.too_slow = 0

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        *,
        now: datetime | None = None,
        **extra: Any,
    ) -> str:
        """The conversation as text, as `luthier.chat.render` gives it.

        Args:
            messages: `role`, `content` and what else the template reads.
            tools: JSON schemas of functions.
            add_generation_prompt: end with what comes before an answer.
            now: the time told to the template; the present when None.
            **extra: further names for the template, such as `enable_thinking`.

        Raises:
            TemplateRefused: the template refuses or fails on this conversation.
        """
        return self._view(tools, now, extra).text(messages, add_generation_prompt=add_generation_prompt)

    def supervise(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        train_on: TrainOn = "assistant",
        *,
        thinking: Thinking = "template",
        learn_thinking: bool = True,
        now: datetime | None = TRAINING_DAY,
        **extra: Any,
    ) -> list[Rendered]:
        """The conversation as segments, with the characters that are learnt.

        Args:
            messages: as for `render`. A `weight` on an assistant message weighs its characters; 0 leaves it out.
            tools: JSON schemas of functions.
            train_on: `assistant`: every answer; `last`: the last answer; `all`: every character.
            thinking: what becomes of thoughts, see `thinking.py`.
            learn_thinking: whether thoughts that stand in an answer are learnt with it.
            now: the time told to the template, fixed so that the same data gives the same tokens every day.
            **extra: further names for the template.

        Returns:
            One segment, or several where history is rewritten (see `ladder.py`); each has something to learn.

        Raises:
            TemplateRefused: the template refuses the conversation, its answers cannot be located, or nothing is to be learnt.
        """
        if thinking == "keep":
            extra = {**KEEP, **extra}
        elif thinking == "drop":
            messages = [without_thought(message) for message in messages]
        weights = {i: _weight(message, i) for i, message in enumerate(messages) if message["role"] == "assistant"}
        view = self._view(tools, now, extra)
        if thinking == "strip" and train_on != "all" and any(thought_of(messages[turn]) for turn in list(weights)[:-1]):
            segments = self._stripped(view, messages, train_on, weights, learn_thinking)
        else:
            messages = stripped(messages) if thinking == "strip" else messages
            segments = self._located(view, messages, train_on, weights)
            if not learn_thinking:
                segments = _thoughtless(view, messages, segments)
        if thinking == "keep":
            _check_kept(messages, segments)
        if not all(segment.spans for segment in segments):
            raise TemplateRefused("there is nothing to learn: the template writes nothing for an answer")
        return segments

    @property
    def end_of_turn(self) -> str:
        """What the model writes when it is done; empty if neither template nor tokenizer has such a thing."""
        if self.family:
            return self.family.end_of_turn.replace("{eos}", self._eos)
        return self._shape({}, False).end_of_turn or self._eos

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts at which a generation ends, without repetition."""
        if self.family:
            texts = [text.replace("{eos}", self._eos) for text in self.family.stop]
        else:
            shape = self._shape({}, False)
            texts = [shape.end_of_turn, shape.next_turn, self._eos]
        return tuple(dict.fromkeys(text for text in texts if text))

    @property
    def tool_format(self) -> str | None:
        """How it calls functions: a name in `chat.tools.FORMATS`; None if it does not, or in no way that is known."""
        return self.family.tools if self.family else recognise(self.source)

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] | None = None) -> Answer:
        """Take an answer apart into its text, its thought and its calls of functions.

        Args:
            text: what the model wrote, special tokens included, without its end-of-turn token.
            tools: JSON schemas of the functions that it knew.
        """
        return parse(text, self.tool_format, tools)

    @property
    def _eos(self) -> str:
        return self.variables.get("eos_token") or ""

    def _shape(self, extra: Mapping[str, Any], with_tools: bool) -> Shape:
        """The shape under these variables; some templates have another one, or only one, when there are tools."""
        key = (repr(sorted(extra.items())), with_tools)
        if key not in self._shapes:
            view = self._view([_PROBE_TOOL] if with_tools else None, TRAINING_DAY, extra)
            self._shapes[key] = find_shape(view.text, self._eos)
        return self._shapes[key]

    @cached_property
    def _twin(self) -> Program | None:
        """Our own template that writes the same for a short dialogue, if one does."""
        dialogue = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
        own = self._view(None, TRAINING_DAY, {})
        for messages in (dialogue, dialogue[1:]):
            for family in alike(self.source):
                twin = replace(own, program=compiled(family.source))
                try:
                    if _alike(own, twin, messages):
                        return twin.program
                except TemplateRefused:
                    continue
        return None

    def _located(
        self, view: View, messages: Sequence[Message], train_on: TrainOn, weights: Mapping[int, float]
    ) -> list[Rendered]:
        """The segments of a conversation, with what is learnt in them."""
        if train_on == "all":
            return [self._everything(view, messages, weights)]
        targets = dict(list(weights.items())[-1:]) if train_on == "last" else weights
        if not any(targets.values()):
            raise TemplateRefused("every answer has weight 0" if targets else "there is no answer to learn")
        segments = climb(view, lambda: self._twin_of(view), messages, targets)
        if not all(targets.values()):
            segments = [replace(segment, spans=_learnt(segment.spans)) for segment in segments]
        return segments

    def _stripped(
        self, view: View, messages: Sequence[Message], train_on: TrainOn, weights: Mapping[int, float], learn_thinking: bool
    ) -> list[Rendered]:
        """One segment for each answer, before which no thought stands."""
        turns = [turn for turn, weight in weights.items() if weight]
        segments: list[Rendered] = []
        for turn in turns[-1:] if train_on == "last" else turns:
            until = stripped(messages[: turn + 1])
            found = self._located(view, until, "last", {turn: weights[turn]})
            segments += found if learn_thinking else _thoughtless(view, until, found)
        if not segments:
            raise TemplateRefused("every answer has weight 0")
        return [replace(segment, rung="unrolled") for segment in segments]

    def _everything(self, view: View, messages: Sequence[Message], weights: Mapping[int, float]) -> Rendered:
        """Every character with weight 1, except where an answer has a weight of its own."""
        own = {turn: weight for turn, weight in weights.items() if weight != 1.0}
        if not own:
            text = view.text(messages)
            return Rendered(text, ((0, len(text), 1.0),), "all")
        segments = climb(view, lambda: self._twin_of(view), messages, own)
        if len(segments) != 1 or segments[0].rung == "unrolled":
            raise TemplateRefused("answers with weights cannot be located in the whole text, which `train_on: all` learns")
        text, spans, position = segments[0].text, [], 0
        for begin, end, weight in segments[0].spans:
            spans += [(position, begin, 1.0), (begin, end, weight)]
            position = end
        return Rendered(text, _learnt([*spans, (position, len(text), 1.0)]), "all")

    def _twin_of(self, view: View) -> View | None:
        return replace(view, program=self._twin) if self._twin else None

    def _view(self, tools: Sequence[Mapping[str, Any]] | None, now: datetime | None, extra: Mapping[str, Any]) -> View:
        variables = {**self.variables, **plain(extra), "tools": None if tools is None else plain(list(tools)), "documents": None}
        rewrites = self.family is not None and self.family.rewrites
        return View(self._program, variables, now, lambda: self._shape(extra, tools is not None), rewrites)


def _alike(own: View, twin: View, dialogue: Sequence[Message]) -> bool:
    """Whether two templates write the same dialogue, and the same prompt for its last answer."""
    asked, prompted = (view.text(dialogue[:-1], add_generation_prompt=True) for view in (own, twin))
    return asked == prompted and own.text(dialogue) == twin.text(dialogue)


def _learnt(spans: Iterable[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if span[2] and span[0] < span[1])


def _thoughtless(view: View, messages: Sequence[Message], segments: list[Rendered]) -> list[Rendered]:
    """The segments with the thoughts in them taken out of what is learnt; unrolled ones end with the answer they are made for."""
    if not any(thought_of(message) for message in messages if message["role"] == "assistant"):
        return segments
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    changed: list[Rendered] = []
    for segment in segments:
        until = messages
        if segment.rung == "unrolled":
            until = next(messages[: turn + 1] for turn in turns if view.text(messages[: turn + 1]) == segment.text)
        spans = without(segment.spans, thoughts(view, until, segment.text))
        changed.append(replace(segment, spans=spans))
    return changed


def _check_kept(messages: Sequence[Message], segments: list[Rendered]) -> None:
    """Refuse where a template has dropped a thought that it was asked to keep."""
    text = segments[-1].text
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and thought_of(message).strip() not in text:
            raise TemplateRefused(f"the template does not keep the thought of message {number}, as `thinking: keep` asks")


def _weight(message: Message, index: int) -> float:
    weight = message.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise TemplateRefused(f"the weight of message {index + 1} is {weight!r}, not a number from 0 up")
    return float(weight)


def resolve(
    choice: str,
    tokenizer_template: str | None,
    variables: Mapping[str, str],
    thinking: Thinking = "template",
    *,
    fallback: str = "",
) -> ChatTemplate:
    """The template that a recipe asks for.

    Args:
        choice: `auto`, a family's name or alias, the path of a `.jinja` file, or a template itself (a text with `{{` or `{%`).
        tokenizer_template: the template that came with the tokenizer.
        variables: names for the template, such as `bos_token` and `eos_token`.
        thinking: as in `data.thinking`. With `drop` the template says by itself that there are no thoughts, so that the model is
            prompted without them wherever it is served.
        fallback: the family that `auto` takes where the tokenizer brings no template, such as the one that the catalogue of models names;
            empty for `default`.

    Raises:
        UserError: there is no such family or file, or the template is no valid Jinja.
    """
    chosen = _chosen(choice, tokenizer_template, variables, fallback)
    if thinking != "drop":
        return chosen
    return ChatTemplate(chosen.name, NO_THOUGHTS + chosen.source, chosen.variables, family=chosen.family, note=chosen.note)


def _chosen(choice: str, tokenizer_template: str | None, variables: Mapping[str, str], fallback: str) -> ChatTemplate:
    if choice == "auto" and tokenizer_template:
        return ChatTemplate("the tokenizer's", tokenizer_template, variables)
    note = None
    if choice == "auto":
        choice = fallback or "default"
        note = f"the tokenizer has no chat template; the family `{choice}` is used"
    if family := by_any_name().get(choice):
        return ChatTemplate(choice, family.source, variables, family=family, note=note)
    if "{{" in choice or "{%" in choice:
        return _written(choice, "data.template", "the recipe's", variables)
    if choice.endswith(".jinja"):
        return _from_file(Path(choice), variables)
    hint = "A template file ends in `.jinja`." if "/" in choice else did_you_mean(choice, ["auto", *by_any_name()])
    raise UserError(f"unknown template `{choice}`", where="data.template", hint=hint)


def _from_file(path: Path, variables: Mapping[str, str]) -> ChatTemplate:
    try:
        source = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"the template cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError("the template is not UTF-8 text", where=str(path), hint="Save it as UTF-8.") from error
    return _written(source, str(path), path.stem, variables)


def _written(source: str, where: str, name: str, variables: Mapping[str, str]) -> ChatTemplate:
    """A template that the user wrote; a mistake in it is told with its place."""
    try:
        return ChatTemplate(name, source, variables)
    except UserError as error:
        raise UserError(error.what, where=where) from error
