"""The command tree, and how each end of a command becomes an exit code.

| end | printed on stderr | exit code |
|---|---|---|
| done | | 0 |
| a bug | the traceback | 1 |
| `UserError`, or a command line that cannot be parsed | `error: …` | 2 |
| `Stopped`: interrupted, saved, resumable | how to go on | 3 |
| interrupted with nothing to save | | 130 |
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from luthier.cli.adapters import adapters_app
from luthier.cli.adapters_import import import_
from luthier.cli.chat import chat
from luthier.cli.classify import classify
from luthier.cli.compare import compare
from luthier.cli.data import data_app
from luthier.cli.env import env
from luthier.cli.evaluate import evaluate
from luthier.cli.export import export_app
from luthier.cli.generate import generate
from luthier.cli.login import login
from luthier.cli.models import models_app
from luthier.cli.recipes import recipes_app
from luthier.cli.runs import logs, runs_app, show, stop
from luthier.cli.serve import serve
from luthier.cli.template import template_app
from luthier.cli.train import TakesFields, resume, train
from luthier.cli.usage import is_usage_error, told
from luthier.errors import EXIT_BUG, EXIT_DONE, EXIT_STOPPED, EXIT_USER, Stopped, UserError
from luthier.files import is_disk_full
from luthier.version import __version__

RANK_GRACE = 5.0
"""Seconds that another rank leaves rank 0 to tell the same mistake, before it tells it itself."""
TALKERS = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn their own authors while they are loaded: of binaries for another machine, of code to fetch, of calls between them."""

app = typer.Typer(
    name="luthier",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _luthier(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A workshop for fine-tuning language models: a data file in, a tuned model you can talk to out."""
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)


app.command(cls=TakesFields)(train)
app.command(cls=TakesFields)(resume)
app.command()(stop)
app.command()(show)
app.command()(logs)
app.command()(chat)
app.command()(compare)
app.command()(generate)
app.command()(classify)
app.command()(serve)
app.command()(evaluate)
app.add_typer(runs_app, name="runs")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(template_app, name="template")
app.add_typer(adapters_app, name="adapters")
app.add_typer(export_app, name="export")
app.command()(env)
app.command()(login)
runs_app.command(cls=TakesFields)(resume)
adapters_app.command("import")(import_)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code. Bugs pass through as the exceptions they are."""
    rank = int(os.environ.get("RANK", "0"))
    _print_anything()
    try:
        ended = app(list(arguments), prog_name="luthier", standalone_mode=False)
        return ended if isinstance(ended, int) else EXIT_DONE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_DONE
    except typer.Abort:
        print("aborted", file=sys.stderr)
        return EXIT_BUG
    except UserError as error:
        return _tell(f"error: {error}", rank)
    except Stopped as stopped:
        # Only rank 0's code counts; any other than 0 from another rank would end rank 0 while it may still be saving.
        if rank:
            return EXIT_DONE
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except Exception as error:
        if is_usage_error(error):
            return _tell(told(error), rank)
        if not is_disk_full(error):
            raise
        place = f" ({name})" if (name := getattr(error, "filename", None)) else ""
        print(f"error: the disk is full{place}. What was saved before is intact; make room and go on.", file=sys.stderr)
        return EXIT_BUG


def _print_anything() -> None:
    """Let a character that cannot be encoded (half of a surrogate pair in a file, or any in a C locale) be printed as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(message: str, rank: int) -> int:
    if rank:
        time.sleep(RANK_GRACE)
        message = f"rank {rank}: {message}"
    print(message, file=sys.stderr)
    return EXIT_USER
