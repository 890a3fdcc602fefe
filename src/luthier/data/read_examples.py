"""From a source to examples: its rows, in the format that was named or that the first rows tell.

A source has one format. A row that does not keep to it is a problem with its line, never a guess. Which format is tried first
depends on what is learnt: `{"text": …, "instruction": …}` is a document for pre-training and an instruction for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from luthier.data.examples import Conversation, Document, Example, Feedback, Labelled, Origin, Preference, Prompt
from luthier.data.fill import Filler
from luthier.data.formats import FORMATS, Format
from luthier.data.formats.fields import kind
from luthier.data.problems import Problems, RowError, RowProblem
from luthier.data.read_json import Row
from luthier.data.registry import resolve
from luthier.data.sources import rows_of, title_of
from luthier.data.wanted import WANTED, Wanted
from luthier.errors import UserError, did_you_mean
from luthier.recipe.schema import Source

_LOOKED_AT = 100
_WORDS: dict[type[Example], str] = {
    Document: "a document",
    Labelled: "a text with a label",
    Conversation: "a conversation",
    Preference: "a preference pair",
    Feedback: "feedback (it has a label)",
    Prompt: "a prompt without an answer",
}
_PLURALS: dict[type[Example], str] = {
    Document: "documents",
    Labelled: "texts with labels",
    Conversation: "conversations",
    Preference: "preference pairs",
    Feedback: "feedback",
    Prompt: "prompts",
}
_MEDIA = ("images", "videos", "audios")


def read_examples(
    source: Source,
    problems: Problems,
    *,
    stage: str | None = None,
    system: str | None = None,
    fill: Filler | None = None,
    rows: Iterator[Row] | None = None,
) -> Iterator[Example]:
    """Yield the examples of a source, of the kind that the stage learns from.

    Args:
        source: file, format and columns; at most `max_examples` are read.
        problems: takes every bad row.
        stage: `sft`, `dpo`, …; None takes examples of any kind.
        system: system prompt for conversations that bring none.
        fill: fills placeholders.
        rows: to be read in place of all rows of the source.

    Raises:
        UserError: the file cannot be read at all, its format cannot be told, or does not fit the stage.
    """
    source = resolve(source, stage=stage)
    chosen, rows = choose_format(source, rows_of(source) if rows is None else rows, stage)
    _check_stage(chosen, source, stage)
    check_columns(chosen, source)
    count = 0
    for origin, row in rows:
        try:
            examples = _wanted(parse(chosen, row, origin, source.columns), stage, first=not count)
        except RowError as error:
            problems.add(origin, str(error), fatal=isinstance(row, RowProblem) and row.fatal)
            continue
        for example in examples:
            example = fill(example) if fill else example
            yield _with_system(example, system) if system else example
            count += 1
            if count == source.max_examples:
                return


def parse(chosen: Format, row: Any, origin: Origin, columns: Mapping[str, str]) -> Sequence[Example]:
    """The examples of one row, as `read_rows` gives it.

    Raises:
        RowError: it could not be read, holds pictures or sound, or is not what the format promises.
    """
    if isinstance(row, RowProblem):
        raise RowError(row.message)
    if isinstance(row, dict):
        for name in _MEDIA:
            if row.get(name):
                raise RowError(f"has `{name}`; only text is read")
    elif chosen is not FORMATS["messages"] or not isinstance(row, list):
        raise RowError(f"the row is {kind(row)}, it should be a mapping")
    return chosen.parse(row, origin, columns)


def choose_format(
    source: Source, rows: Iterator[tuple[Origin, Any]], stage: str | None = None
) -> tuple[Format, Iterator[tuple[Origin, Any]]]:
    """The format that is named, else the one that fits the first row that fits any; and all rows, those looked at included.

    Raises:
        UserError: none fits.
    """
    if source.format != "auto":
        return FORMATS[source.format], rows
    seen: list[tuple[Origin, Any]] = []
    own = {name: canonical for canonical, name in source.columns.items()}
    candidates = _candidates(source, stage)
    for origin, row in rows:
        seen.append((origin, row))
        named = {own.get(key, key): value for key, value in row.items()} if isinstance(row, dict) else row
        for candidate in candidates:
            if candidate.matches(named):
                return candidate, chain(seen, rows)
        if len(seen) == _LOOKED_AT:
            break
    if problem := next(((origin, row) for origin, row in seen if isinstance(row, RowProblem)), None):
        raise UserError(problem[1].message, where=str(problem[0]))
    origin, row = seen[0]
    having = (
        f"the keys {', '.join(f'`{str(key)[:40]}`' for key in list(row)[:8])}" if isinstance(row, dict) and row else kind(row)
    )
    hint = "Set `format`, or name the columns: `columns: {instruction: question, output: answer}`."
    raise UserError(f"cannot tell the format of the rows from {having}", where=str(origin), hint=hint)


def _candidates(source: Source, stage: str | None) -> list[Format]:
    """The formats that have the columns that were named; those that make what the stage wants stand first."""
    having = [each for each in FORMATS.values() if set(source.columns) <= set(each.COLUMNS)]
    if not having:
        known = {name for each in FORMATS.values() for name in each.COLUMNS}
        strange = next((name for name in source.columns if name not in known), None)
        what = f"no format has `{strange}`" if strange else "no format has all of them"
        hint = did_you_mean(strange, known) if strange else "Set `format`; `columns` maps the names of that format to yours."
        raise UserError(f"`columns`: {what}", where=title_of(source), hint=hint)
    wanted = WANTED.get(stage) if stage else None
    return sorted(having, key=lambda each: _fitness(each, wanted)) if wanted else having


def _fitness(candidate: Format, wanted: Wanted) -> tuple[bool, bool, bool]:
    """How a format is placed among others: what makes the wanted kind, then what can become it, then the rest.

    A format of nothing but documents stands before those that can be documents as well.
    """
    only = (Document,)
    makes = any(kind in candidate.MAKES for kind in wanted.kinds)
    return not makes, wanted.kind not in candidate.MAKES, wanted.kind in only and only != candidate.MAKES


def _with_system(example: Example, system: str) -> Example:
    if isinstance(example, Document):
        return example
    message = {"role": "system", "content": system}
    if isinstance(example, Preference):
        bare = not example.prompt or example.prompt[0]["role"] != "system"
        return replace(example, prompt=(message, *example.prompt)) if bare else example
    return replace(example, messages=(message, *example.messages)) if example.messages[0]["role"] != "system" else example


def _check_stage(chosen: Format, source: Source, stage: str | None) -> None:
    if stage is None or any(kind in chosen.MAKES for kind in WANTED[stage].kinds):
        return
    if chosen is FORMATS["text"]:
        what = f"plain text has no answers to learn in stage `{stage}`"
        raise UserError(what, where=title_of(source), hint="Use `stage: pt`, or data with questions and answers.")
    if stage == "pt":
        hint = "Use `stage: sft`, or name the column to read: `columns: {text: output}`."
        raise UserError(f"holds `{chosen.NAME}` conversations, but stage `pt` reads text", where=title_of(source), hint=hint)
    makes = " or ".join(_PLURALS[kind] for kind in chosen.MAKES)
    what = f"rows of format `{chosen.NAME}` are {makes}, but stage `{stage}` learns from {_PLURALS[WANTED[stage].kind]}"
    raise UserError(what, where=title_of(source), hint=_taken(WANTED[stage]))


def _wanted(examples: Sequence[Example], stage: str | None, *, first: bool) -> Sequence[Example]:
    """The examples as the stage wants them. What it cannot learn from is refused: the source if it begins so, else the row."""
    if stage is None:
        return examples
    wanted = WANTED[stage]
    for example in examples:
        if not isinstance(example, wanted.kinds):
            what = f"the row is {_WORDS[type(example)]}, but stage `{stage}` learns from {_PLURALS[wanted.kind]}"
            meant = stage == "sft" and isinstance(example, Feedback)
            hint = "If that is not what it means, set `columns: {label: ''}`." if meant else _taken(wanted)
            raise UserError(what, where=str(example.origin), hint=hint) if first else RowError(what)
    return [made for example in examples for made in wanted.of(example)]


def _taken(wanted: Wanted) -> str:
    """Which formats hold what a stage learns from."""
    fitting = [f"`{each.NAME}`" for each in FORMATS.values() if wanted.kind in each.MAKES]
    return f"Formats that hold {_PLURALS[wanted.kind]}: {', '.join(fitting)}. `luthier data formats` shows them."


def check_columns(chosen: Format, source: Source) -> None:
    """Refuse names of columns that the format does not have.

    Raises:
        UserError: there is such a name.
    """
    for name in source.columns:
        if name not in chosen.COLUMNS:
            hint = did_you_mean(name, chosen.COLUMNS)
            raise UserError(f"`columns`: format `{chosen.NAME}` has no `{name}`", where=title_of(source), hint=hint)
