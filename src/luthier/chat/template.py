"""`ChatTemplate`: one template with its variables, for asking (`render`) and for learning (`supervise`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from luthier.chat.families import Family, alike, families
from luthier.chat.ladder import Rendered, Span, View, climb
from luthier.chat.render import Message, Program, TemplateRefused, compiled, plain
from luthier.chat.shape import Shape, find_shape
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
        now: datetime | None = TRAINING_DAY,
        **extra: Any,
    ) -> list[Rendered]:
        """The conversation as segments, with the characters that are learnt.

        Args:
            messages: as for `render`. A `weight` on an assistant message weighs its characters; 0 leaves it out.
            tools: JSON schemas of functions.
            train_on: `assistant`: every answer; `last`: the last answer; `all`: every character.
            now: the time told to the template, fixed so that the same data gives the same tokens every day.
            **extra: further names for the template.

        Returns:
            One segment, or several where the template rewrites history (see `ladder.py`); each has something to learn.

        Raises:
            TemplateRefused: the template refuses the conversation, its answers cannot be located, or nothing is to be learnt.
        """
        weights = {i: _weight(message, i) for i, message in enumerate(messages) if message["role"] == "assistant"}
        view = self._view(tools, now, extra)
        if train_on == "all":
            return [self._everything(view, messages, weights)]
        targets = dict(list(weights.items())[-1:]) if train_on == "last" else weights
        if not any(targets.values()):
            raise TemplateRefused("every answer has weight 0" if targets else "there is no answer to learn")
        segments = climb(view, lambda: self._twin_of(view), messages, targets)
        if not all(targets.values()):
            segments = [replace(segment, spans=_learnt(segment.spans)) for segment in segments]
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
        for family in alike(self.source):
            twin = replace(own, program=compiled(family.source))
            for messages in (dialogue, dialogue[1:]):
                try:
                    if own.text(messages) == twin.text(messages):
                        return twin.program
                except TemplateRefused:
                    continue
        return None

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
        return View(self._program, variables, now, lambda: self._shape(extra, tools is not None))


def _learnt(spans: Iterable[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if span[2] and span[0] < span[1])


def _weight(message: Message, index: int) -> float:
    weight = message.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise TemplateRefused(f"the weight of message {index + 1} is {weight!r}, not a number from 0 up")
    return float(weight)


def resolve(choice: str, tokenizer_template: str | None, variables: Mapping[str, str]) -> ChatTemplate:
    """The template that a recipe asks for.

    Args:
        choice: `auto`, a family's name, or the path of a `.jinja` file.
        tokenizer_template: the template that came with the tokenizer.
        variables: names for the template, such as `bos_token` and `eos_token`.

    Raises:
        UserError: there is no such family or file, or the template is no valid Jinja.
    """
    if choice == "auto" and tokenizer_template:
        return ChatTemplate("the tokenizer's", tokenizer_template, variables)
    if choice == "auto":
        note = "the tokenizer has no chat template; the family `default` is used"
        return ChatTemplate("default", families()["default"].source, variables, family=families()["default"], note=note)
    if choice in families():
        return ChatTemplate(choice, families()[choice].source, variables, family=families()[choice])
    if choice.endswith(".jinja"):
        return _from_file(Path(choice), variables)
    hint = "A template file ends in `.jinja`." if "/" in choice else did_you_mean(choice, ["auto", *families()])
    raise UserError(f"unknown template `{choice}`", where="data.template", hint=hint)


def _from_file(path: Path, variables: Mapping[str, str]) -> ChatTemplate:
    try:
        source = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"the template cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError("the template is not UTF-8 text", where=str(path), hint="Save it as UTF-8.") from error
    try:
        return ChatTemplate(path.stem, source, variables)
    except UserError as error:
        raise UserError(error.what, where=str(path)) from error
