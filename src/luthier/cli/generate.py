"""`luthier generate`: answers to all questions of a data file, as JSON lines; carried on where it was interrupted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.chat import Adapter, Checkpoint, System, Think
from luthier.cli.data_sources import As, Columns, check_format, column_names, source_named
from luthier.cli.named import split_step
from luthier.cli.sampling import sampled
from luthier.errors import Stopped, UserError
from luthier.runs.lines import duration

if TYPE_CHECKING:
    from luthier.generation.constraint import Constraint

INTERVAL = 10.0
"""Seconds between two lines of progress where there is no terminal."""


@sampled()
def generate(
    questions: Annotated[
        str,
        typer.Argument(metavar="IN", help="Questions: a data file of any format; of a conversation, all up to its last answer."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file that is written, or carried on with: JSON lines.")],
    *,
    model: Annotated[str, typer.Option(metavar="NAME", help="A run, RUN@STEP, a model, or an adapter folder.")],
    checkpoint: Checkpoint = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model of the run, without what was learnt.")] = False,
    adapter: Adapter = None,
    system: System = None,
    think: Think = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="Answers to each question.")] = 1,
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="Answers are JSON of this schema: a file, or the schema itself.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Answers match this regular expression as a whole.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Answers are one of these; give the option again for each.")
    ] = None,
    format_name: As = "auto",
    columns: Columns = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N questions.")] = None,
    slots: Annotated[int, typer.Option(metavar="N", min=1, help="Answers written at once; fewer take less memory.")] = 32,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be answered, and count them.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever answers the file holds.")] = False,
    decoding: dict[str, Any],
) -> None:
    """Answer every question of a data file. Interrupted, the same command carries on."""
    source = source_named(questions, check_format(format_name, "--as"), column_names(columns))
    if Path(questions).absolute() == out.absolute():
        raise UserError("would replace the questions", where=str(out), hint="Choose another name.")
    name, step = split_step(model)
    if step is not None and checkpoint is not None:
        raise UserError("contradict each other", where="--checkpoint and --model", hint="Name the step once.")
    decoding["constraint"] = _form(json_schema, regex, choice)
    from luthier.workshop.answers import answer_file

    with _progress() as progress:
        try:
            done, before, problems = answer_file(
                source.model_copy(update={"max_examples": limit}) if limit else source,
                out,
                name,
                which={"checkpoint": step if checkpoint is None else checkpoint, "base": base, "adapter": adapter},
                decoding=decoding,
                n=n,
                system=system,
                thinking=think,
                skip_bad=skip_bad,
                restart=restart,
                slots=slots,
                progress=progress,
            )
        except KeyboardInterrupt:
            kept = f"What is answered is in {out}; the" if out.exists() else "The"
            raise Stopped(f"Stopped. {kept} same command carries on.") from None
    print(f"{out}: {done:,} answers" + (f", {before:,} of them were there" if before else ""))
    if problems.count:
        print(f"  bad rows left out: {problems.count:,}")
        print("\n".join(f"    {kind}" for kind in problems.by_kind(10)))


def _form(schema: str | None, regex: str | None, choice: list[str] | None) -> Constraint | None:
    """The form that answers must have.

    Raises:
        UserError: two forms at once, or a schema that is no JSON.
    """
    from luthier.generation.constraint import Constraint

    if sum(form is not None for form in (schema, regex, choice or None)) > 1:
        raise UserError("contradict each other", where="--json-schema, --regex and --choice", hint="Give one of them.")
    if schema is not None:
        path = Path(schema)
        text = schema if schema.lstrip().startswith(("{", "true", "false")) else _read(path)
        try:
            return Constraint.json_schema(json.loads(text))
        except ValueError as error:
            raise UserError(f"not valid JSON ({error})", where=f"--json-schema {schema[:80]}") from None
    return Constraint.regex(regex) if regex is not None else Constraint.choice(choice) if choice else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=f"--json-schema {path}") from None


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on a terminal, else a line now and then; both on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("answers"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task: list[Any] = []

        def moved(done: int, total: int) -> None:
            if not task:  # begun where the file left off, so that the speed is that of this time
                task.append(bar.add_task("answers", total=total, completed=done))
            bar.update(task[0], completed=done)

        yield moved


class _Lines:
    """Progress as lines: one every `INTERVAL` seconds, with the time that is left at the speed of this time."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._told = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._told = (now, done), now
        began, before = self._first
        if now - self._told < INTERVAL or done == before:
            return
        self._told = now
        left = (now - began) / (done - before) * (total - done)
        print(f"{done:,} of {total:,} answers, {duration(left)} left", file=sys.stderr)
