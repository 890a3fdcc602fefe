"""Rows from a user's own code: `python: rows.py:load`.

Alone, the function is called without arguments and yields rows. Beside a path or a name it is called with each row and gives a row, a
list of rows, or None to leave it out. Only a file that the recipe names is run, and only its own content is part of the cache's key: a
file that it imports or reads is not, so change the file itself (a comment is enough) when one of those has changed.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from luthier.data.examples import Origin
from luthier.data.problems import RowProblem
from luthier.data.read_json import Row
from luthier.data.textfile import shown
from luthier.errors import UserError, did_you_mean


def code_file(named: str) -> Path:
    """The file of `file.py:function`.

    Raises:
        UserError: it is not of that form, or there is no such file.
    """
    file, colon, function = named.rpartition(":")
    if not colon or not function.isidentifier():
        raise UserError(f"`{named}` is not `file.py:function`", where="python")
    if not Path(file).is_file():
        raise UserError("no such file", where=shown(Path(file)))
    return Path(file)


def yielded_rows(named: str) -> Iterator[Row]:
    """The rows that the function yields, numbered from 1.

    Raises:
        UserError: it cannot be imported, raises, or yields nothing.
    """
    file, function = imported(named)
    try:
        made = function()
        if not isinstance(made, Iterable) or isinstance(made, str | dict):
            raise UserError(f"`{function.__name__}` gives a {type(made).__name__}, it should yield rows", where=shown(file))
        number = -1
        for number, row in enumerate(made):
            yield Origin(shown(file), number + 1, number), row
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise told(error, file) from error
    if number < 0:
        raise UserError(f"`{function.__name__}` yields no rows", where=shown(file))


def mapped_rows(named: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that the function makes of others; one that it raises at is a problem of that row.

    Raises:
        UserError: it cannot be imported.
    """
    file, function = imported(named)
    for origin, row in rows:
        if isinstance(row, RowProblem):
            yield origin, row
            continue
        try:
            made = function(row)
        except Exception as error:  # whatever the user's code raises
            yield origin, RowProblem(str(told(error, file)))
            continue
        for each in made if isinstance(made, list) else [] if made is None else [made]:
            yield origin, each


def imported(named: str) -> tuple[Path, Callable[..., Any]]:
    """The file of `file.py:function`, and the function.

    Raises:
        UserError: there is no such file or function, or the file fails when it is run.
    """
    file, name = code_file(named), named.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"luthier_own_{file.stem}_{crc32(bytes(file.absolute())):08x}", file)
    if spec is None or spec.loader is None:
        raise UserError("is not a Python file", where=shown(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise told(error, file) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"there is no function `{name}`", where=shown(file), hint=did_you_mean(name, known) if known else None)
    return file, function


def told(error: Exception, file: Path) -> UserError:
    """An error of the user's code in one line, with the line of the file where it happened."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return UserError(f"SyntaxError: {error.msg}", where=f"{shown(file)}:{error.lineno}")
    inside = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    place = f"{shown(file)}:{inside[-1].lineno}" if inside else shown(file)
    said = (str(error).strip().splitlines() or [""])[0]
    return UserError(f"{type(error).__name__}: {said}" if said else type(error).__name__, where=place)
