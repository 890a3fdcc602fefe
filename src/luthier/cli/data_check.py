"""`luthier data check`: what is wrong with data, row by row, before anything is spent on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.data_sources import As, Columns, check_format, column_names, source_named
from luthier.errors import EXIT_DONE, EXIT_USER, UserError

if TYPE_CHECKING:
    from luthier.data.doctor import Examination, Finding, Options
    from luthier.data.doctor.mend import Mender
    from luthier.data.doctor.row import Row
    from luthier.recipe.schema import Source

PROBLEMS = 1
"""Exit code where something is wrong with the data."""

Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Training data: files, folders, hub ids, or names in a registry.")
]


def check(
    files: Files,
    format_name: As = "auto",
    columns: Columns = None,
    validation: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Validation data, which the training data should not hold.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Count tokens as this model does: `tiny`, a folder or a hub id.")
    ] = None,
    template: Annotated[
        str, typer.Option(metavar="NAME", help="Chat template, with --model. Default: the model's own.")
    ] = "auto",
    max_length: Annotated[int, typer.Option(metavar="N", min=1, help="Longest row in tokens, with --model.")] = 1024,
    ignore: Annotated[str, typer.Option(metavar="KINDS", help="Kinds of problems not to tell, e.g. duplicate,phone.")] = "",
    listed: Annotated[
        int, typer.Option("--show", metavar="N", min=0, help="Print so many problems of each kind; 0 prints only the summary.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print every problem and the summary as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report with pictures and samples.")] = None,
    fix: Annotated[Path | None, typer.Option(metavar="OUT", help="Also write a cleaned copy, and say what was changed.")] = None,
    drop: Annotated[
        str, typer.Option(metavar="KINDS", help="Kinds whose rows --fix leaves out besides, e.g. near-duplicate.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Let --html and --fix replace files that are there.")] = False,
) -> None:
    """Look at every row and say what is wrong with it. Exit code: 0 clean, 1 errors, 2 not readable."""
    from luthier.data.doctor import Examination
    from luthier.data.doctor.kinds import kinds_named

    if drop and not fix:
        raise UserError("says what the cleaned copy leaves out, and none is written", where="--drop", hint="Give --fix OUT.")
    _check_places(files, html, fix, force)
    options = _options(model, template, max_length, ignore)
    check_format(format_name, "--as")
    own = column_names(columns)
    sources = [source_named(file, format_name, own) for file in files]
    held_out = [source_named(file, format_name, own) for file in validation or []]
    dropped = kinds_named(drop, "--drop")
    with _mender(fix, dropped, force) as mender:
        examination = Examination(options, mender)
        told = (_print_json if as_json else _print_text)(examination, sources, held_out, listed)
    if mender:
        print("\n".join(mender.lines()), file=sys.stderr if as_json else sys.stdout)
    if html:
        from luthier.data.doctor.page import page
        from luthier.files import write_atomic

        write_atomic(html, page(examination, told))
    if code := EXIT_USER if examination.unreadable else PROBLEMS if examination.errors else EXIT_DONE:
        raise typer.Exit(code)


def _options(model: str | None, template: str, max_length: int, ignore: str) -> Options:
    from luthier.data.doctor import Options
    from luthier.data.doctor.kinds import kinds_named

    tokenizer = chosen = None
    if model is not None:
        from luthier.chat import resolve
        from luthier.data.tokenizer import load_tokenizer
        from luthier.models.catalog import template_of
        from luthier.models.source import tokenizer_folder
        from luthier.recipe.schema import Model

        tokenizer = load_tokenizer(tokenizer_folder(Model(path=model)))
        chosen = resolve(template, tokenizer.chat_template, tokenizer.variables, fallback=template_of(model))
    elif template != "auto":
        raise UserError("needs a model to count tokens with", where="--template", hint="Give --model too, e.g. --model tiny.")
    return Options(
        ignore=kinds_named(ignore, "--ignore"),
        tokenizer=tokenizer,
        template=chosen,
        max_length=max_length,
    )


def _check_places(files: list[str], html: Path | None, fix: Path | None, force: bool) -> None:
    """Refuse to write over what is there."""
    for flag, path in (("--html", html), ("--fix", fix)):
        if path is None:
            continue
        if any(path.absolute() == Path(file).absolute() for file in files):
            raise UserError("would replace the data that is read", where=f"{flag} {path}", hint="Choose another name.")
        if path.exists() and not force:
            raise UserError("is there already", where=f"{flag} {path}", hint="Choose another name, or give --force.")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder `{path.parent}`", where=f"{flag} {path}", hint="Make it first.")


@contextmanager
def _mender(path: Path | None, drop: frozenset[str], force: bool) -> Iterator[Mender | None]:
    if path is None:
        yield None
        return
    from luthier.data.doctor.mend import Mender
    from luthier.data.write import RowWriter

    with RowWriter(path, replace=force) as writer:
        yield Mender(writer, drop)


Told = dict[str, list["Finding"]]
OnRow = Callable[["Row"], None]


def _print_text(examination: Examination, sources: list[Source], validation: list[Source], listed: int) -> Told:
    """Problems as they are found, at most `listed` of each kind, and the summary; returns the first of each kind."""
    from luthier.data.doctor.page import LISTED
    from luthier.data.doctor.summary import lines

    told: Told = {}
    for finding in examination.findings(sources, validation):
        same = told.setdefault(finding.kind.name, [])
        if examination.tallies[finding.kind.name].found <= listed:
            print(finding)
        if len(same) < LISTED:
            same.append(finding)
    for error in examination.unreadable:
        print(f"error: {error}", file=sys.stderr)
    hidden = sum(max(tally.found - listed, 0) for tally in examination.tallies.values())
    if hidden and listed:
        print(f"… and {hidden:,} more (--show)")
    if examination.errors or examination.warnings:
        print()
    for line in lines(examination):
        print(line)
    return told


def _print_json(examination: Examination, sources: list[Source], validation: list[Source], listed: int) -> Told:
    """One JSON document, written as the problems are found: `problems`, then `summary`."""
    from luthier.data.doctor.page import LISTED
    from luthier.data.doctor.summary import as_dict

    told: Told = {}
    print('{"problems": [', end="")
    first = True
    for finding in examination.findings(sources, validation):
        print(("\n" if first else ",\n") + json.dumps(finding.as_dict(), ensure_ascii=False), end="")
        first = False
        same = told.setdefault(finding.kind.name, [])
        if len(same) < LISTED:
            same.append(finding)
    print(f'\n], "summary": {json.dumps(as_dict(examination), ensure_ascii=False, indent=2)}}}')
    return told
