"""`luthier data convert`: rows from one format to another, joined, chosen and filled in on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.data_sources import As, Columns, check_format, column_names, source_named, texts_of
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.data.convert import Losses, Plan, Rows
    from luthier.data.join import Join
    from luthier.data.problems import Problems
    from luthier.data.write import RowWriter

Pairs = list[str] | None


def convert(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="IN... OUT",
            help="What is read (files, folders, hub ids, names in a registry), and last the file that is written.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format that is written.")] = "messages",
    format_name: As = "auto",
    columns: Columns = None,
    join: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Join the files on this column, which all of them have.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Take only rows for which this holds, e.g. 'len(output) > 20'.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Take only the first N.")] = None,
    sample: Annotated[int | None, typer.Option(metavar="N", min=1, help="Take N, chosen at random.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sample.")] = 0,
    fill: Annotated[
        Pairs, typer.Option("--set", metavar="NAME=TEXT", help="Fill in {{name}} and <NAME>. May be repeated.")
    ] = None,
    replace: Annotated[
        Pairs, typer.Option(metavar="OLD=NEW", help="Put a text in the place of another. May be repeated.")
    ] = None,
    keep: Annotated[Pairs, typer.Option(metavar="COLUMN", help="Carry a column along as it is. May be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if anything would be lost.")] = False,
    skip: Annotated[bool, typer.Option("--skip", help="Leave bad rows out and count them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write data in another format. What the format cannot hold is counted and told."""
    from luthier.data.convert import convert as write_converted
    from luthier.data.problems import Problems
    from luthier.data.write import RowWriter

    if len(files) < 2:
        raise UserError("what is read and what is written are both needed", where="IN... OUT", hint="Name two files at least.")
    if limit is not None and sample is not None:
        raise UserError("contradict each other", where="--limit and --sample", hint="Give one of them.")
    *inputs, out = files
    if Path(out).absolute() in [Path(path).absolute() for path in inputs]:
        raise UserError("would replace the data that is read", where=out, hint="Choose another name.")
    joined = _join(join, inputs)
    problems = Problems("skip" if skip else "fail")
    plan, rows = _plan(inputs, joined, check_format(to, "--to"), check_format(format_name, "--as"), column_names(columns))
    chosen = _chosen(plan, where, fill, replace, limit=limit, sample=sample, seed=seed, keep=tuple(keep or ()), strict=strict)
    with RowWriter(Path(out), replace=force) as writer:
        losses = write_converted(rows, chosen, writer, problems)
        problems.finish()
    for line in _report(chosen, writer, losses, problems, joined):
        print(line)


def _join(column: str | None, inputs: list[str]) -> Join | None:
    if column is None:
        return None
    from luthier.data.join import Join

    if len(inputs) < 2:
        raise UserError("needs two files at least", where="--join", hint="Write it as `questions.csv answers.csv OUT --join id`.")
    return Join(column)


def _plan(inputs: list[str], join: Join | None, to: str, format_name: str, columns: dict[str, str]) -> tuple[Plan, Rows]:
    """Formats, and the rows of all files; the files have one format."""
    from itertools import chain

    from luthier.data.convert import Plan
    from luthier.data.formats import FORMATS
    from luthier.data.read_examples import check_columns, choose_format
    from luthier.data.registry import resolve
    from luthier.data.sources import rows_of, title_of

    sources = [resolve(source_named(name, format_name, columns)) for name in inputs]
    read = [rows_of(source, on_the_way=True) for source in sources]
    joined = join([(title_of(source), rows) for source, rows in zip(sources, read, strict=True)]) if join else None
    chosen, rows = choose_format(sources[0], joined or chain.from_iterable(read))
    check_columns(chosen, sources[0])
    return Plan(chosen, FORMATS[to], sources[0].columns), rows


def _chosen(plan: Plan, where: str | None, fill: Pairs, replace: Pairs, **more: Any) -> Plan:
    """The plan with what is taken and filled in."""
    from dataclasses import replace as changed

    from luthier.data.fill import Filler
    from luthier.data.where import Where

    variables, literal = texts_of(fill, "--set"), texts_of(replace, "--replace")
    filler = Filler(variables, literal) if variables or literal else None
    return changed(plan, where=Where(where) if where else None, fill=filler, **more)


def _report(plan: Plan, writer: RowWriter, losses: Losses, problems: Problems, join: Join | None) -> list[str]:
    """What was written and what was not."""
    lines = [
        f"{writer.path}: {writer.rows:,} {'row' if writer.rows == 1 else 'rows'} as `{plan.target.NAME}`, from `{plan.source.NAME}`"
    ]
    if join:
        lines += [f"  without a partner: {count:,} rows of {file}" for file, count in join.alone.items()]
    if problems.count:
        lines += [f"  bad rows left out: {problems.count:,}", *(f"    {kind}" for kind in problems.by_kind(10))]
    return [*lines, *losses.lines()]
