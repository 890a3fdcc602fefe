"""`luthier compare`: the same questions to base, checkpoints and runs, answers side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.chat import Adapter, Checkpoint, System, Think
from luthier.cli.named import split_step
from luthier.cli.sampling import sampled
from luthier.cli.talk import harmless
from luthier.errors import UserError

Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Runs, RUN@STEP, models or adapter folders, as many as there are to compare."),
]


@dataclass(frozen=True, slots=True)
class Voice:
    """One of those that answer.

    Args:
        title: above its column.
        name: what to load.
        which: arguments of `load_chat`.
    """

    title: str
    name: str
    which: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One question with its answers.

    Args:
        question: as text.
        reference: the answer in the data, if there is one.
        answers: title of a column → what it said.
    """

    question: str
    reference: str | None
    answers: dict[str, str]


@sampled(max_new_tokens=256)
def compare(
    names: Names,
    *,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A question; give the option again for more.")] = None,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Questions from a data file; of a conversation, all up to its last answer.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N questions of the file.")] = None,
    checkpoint: Checkpoint = None,
    checkpoints: Annotated[
        str | None, typer.Option(metavar="STEPS", help="Checkpoints of each run beside its final weights: all, or 100,200.")
    ] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Ask the base of the runs, too.")] = True,
    adapter: Adapter = None,
    system: System = None,
    think: Think = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that can be opened anywhere.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of prompts with their answers.")] = False,
    decoding: dict[str, Any],
) -> None:
    """Answers of the base model and of tuned ones to the same questions, side by side."""
    from luthier.workshop import load_chat

    voices = _voices(names, checkpoint, checkpoints, adapter, base)
    asked = _questions(prompt or [], file, limit)
    questions: list[Any] = [list(talk.messages) if talk else text for text, talk in asked]
    tools = [talk.tools if talk else None for _, talk in asked]
    rows = [Row(text, talk.reference if talk else None, {}) for text, talk in asked]
    for voice in voices:
        model = load_chat(voice.name, **voice.which)
        answers = model.answers(questions, system=system, tools=tools, thinking=think, **decoding)
        for row, answer in zip(rows, answers, strict=True):
            row.answers[voice.title] = answer.text.strip()
        del model  # one leaves memory before the next one comes
    if html is not None:
        html.write_text(_page(rows, [voice.title for voice in voices], decoding, system), encoding="utf-8", errors="replace")
        print(f"written: {html}", file=sys.stderr)
    if as_json:
        print(json.dumps([_entry(row) for row in rows], ensure_ascii=False, indent=2))
    elif html is None:
        _print(rows)


def _voices(names: Sequence[str], step: int | None, steps: str | None, adapter: Path | None, base: bool) -> list[Voice]:
    """Who answers, in the order of the columns: bases, then each run's checkpoints and its end."""
    if (step is not None or steps) and adapter is not None:
        flag = "--checkpoint" if step is not None else "--checkpoints"
        raise UserError("a model folder with an adapter has no checkpoints", where=flag, hint="Leave it out.")
    if step is not None and steps:
        raise UserError("contradict each other", where="--checkpoint and --checkpoints", hint="Give one of them.")
    if adapter is not None:  # the name is the base itself
        if len(names) > 1:
            raise UserError(
                "goes with one model", where="--adapter", hint="Name adapter folders in its place: each knows its base."
            )
        return [Voice("base", names[0]), Voice("tuned", names[0], {"adapter": adapter})]
    if len(names) == 1 and (Path(names[0]) / "config.json").is_file():
        raise UserError("a model alone has nothing to be compared with", where=names[0], hint="Name a run, or give `--adapter`.")
    if len(names) == 1 and not steps and base:
        name, at = split_step(names[0])
        return [Voice("base", name, {"base": True}), Voice("tuned", name, {"checkpoint": step if at is None else at})]
    tuned = [voice for name in names for voice in _of_name(name, step, steps)]
    return _distinct([*(_bases(tuned) if base else []), *tuned])


def _of_name(name: str, step: int | None, steps: str | None) -> list[Voice]:
    """The columns of one name: of a run its checkpoints and its final weights, of anything else the model itself."""
    from luthier.models.source import find_source
    from luthier.runs.folder import find_run

    name, at = split_step(name)
    if at is not None:
        return [Voice(f"{name}, step {at}", name, {"checkpoint": at})]
    if find_source(name).recipe is None:
        return [Voice(name, name)]
    folder = find_run(name)
    if step is not None:
        return [Voice(f"{folder.name}, step {step}", name, {"checkpoint": step})]
    chosen = list(folder.checkpoints()) if steps == "all" else _numbers(steps)
    for number in chosen:
        folder.find_checkpoint(number)
    final = [Voice(folder.name, name)] if folder.final.is_dir() or not chosen else []
    return [*(Voice(f"{folder.name}, step {number}", name, {"checkpoint": number}) for number in chosen), *final]


def _numbers(steps: str | None) -> list[int]:
    try:
        return sorted({int(step) for step in steps.split(",")}) if steps else []
    except ValueError:
        raise UserError(f"cannot be read: `{steps}`", where="--checkpoints", hint="Write it as all, or as 100,200.") from None


def _bases(tuned: Sequence[Voice]) -> list[Voice]:
    """A column for each base that the runs began with."""
    from luthier.models.source import find_source

    found: dict[tuple[str, str], Voice] = {}
    for voice in tuned:
        if find_source(voice.name).recipe is not None:
            source = find_source(voice.name, base=True)
            found.setdefault((source.base.path, str(source.adapter)), Voice("base", voice.name, {"base": True}))
    if len(found) < 2:
        return list(found.values())
    return [Voice(f"base of {voice.name}", voice.name, voice.which) for voice in found.values()]


def _distinct(voices: Sequence[Voice]) -> list[Voice]:
    """Refuse two columns of the same title: they would be one."""
    titles = [voice.title for voice in voices]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"`{title}` is named twice", where="NAME", hint="Name each once; runs of one name by their folders.")
    if len(voices) < 2:
        raise UserError("there is nothing to compare with", where="NAME", hint="Name more runs, or leave out `--no-base`.")
    return list(voices)


def _questions(prompts: Sequence[str], file: str | None, limit: int | None) -> list[tuple[str, Any]]:
    """Each question as text, and as a conversation where it comes from a file."""
    found: list[tuple[str, Any]] = [(text, None) for text in prompts]
    if file is not None:
        from luthier.data.problems import Problems
        from luthier.data.questions import questions_of
        from luthier.recipe.schema import Source

        problems = Problems("fail")
        talks = list(questions_of(Source(path=file, max_examples=limit), problems))
        problems.finish()
        found += [(_shown(talk.messages), talk) for talk in talks]
    if not found:
        raise UserError("there is nothing to ask", where="luthier compare", hint="Give it as --prompt TEXT, or --file FILE.")
    return found


def _shown(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as text; of a question alone its text."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def _entry(row: Row) -> dict[str, str]:
    return {"prompt": row.question, **({"reference": row.reference} if row.reference else {}), **row.answers}


def _print(rows: Sequence[Row]) -> None:
    """A table on a terminal, as long as its columns are wide enough to be read; else one answer below the other."""
    from rich.console import Console

    console = Console()
    if console.is_terminal and console.width >= 20 * (1 + len(rows[0].answers)):
        _print_table(rows, console)
        return
    width = max(len(title) for row in rows for title in _entry(row)) + 2
    show = harmless if console.is_terminal else str
    print("\n\n".join("\n".join(f"{title + ':':{width}}{show(text)}" for title, text in _entry(row).items()) for row in rows))


def _print_table(rows: Sequence[Row], console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True)
    entries = [_entry(row) for row in rows]
    titles = list(dict.fromkeys(title for entry in entries for title in entry))
    for title in titles:
        table.add_column(Text(title), ratio=1 if title == "prompt" else 2, overflow="fold")
    for entry in entries:  # as text: an answer may hold what rich takes for markup
        table.add_row(*(Text(harmless(entry.get(title, ""))) for title in titles))
    console.print(table)


def _page(rows: Sequence[Row], titles: Sequence[str], decoding: dict[str, Any], system: str | None) -> str:
    """All of it as one HTML file that fetches nothing and runs nothing; Jinja escapes what people and models wrote."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("luthier.cli", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    told = {name: value for name, value in decoding.items() if value not in ((), None)}
    return environment.get_template("compare.html.jinja").render(rows=rows, titles=titles, decoding=told, system=system)
