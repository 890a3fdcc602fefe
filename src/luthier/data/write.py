r"""Rows to a file: the counterpart of `read`, row by row, whole or absent.

The suffix says how: `.jsonl` one row a line, `.json` one array, `.csv` and `.tsv` a table, `.txt` documents with `<|endoftext|>` after
each, all of them also `.gz`; and `.parquet` (see `write_parquet`). The columns of a table are those of all rows, so its rows wait in a
temporary file until the last one is known; lists and mappings in csv are written as JSON, as the readers expect them. All is UTF-8 with
`\n` line ends. The file is written beside its place and renamed when it is complete.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.data.problems import RowError
from luthier.data.read import END_OF_TEXT
from luthier.data.read_table import without_nulls
from luthier.data.textfile import shown
from luthier.data.write_parquet import as_text, common, type_of, write_parquet
from luthier.errors import UserError
from luthier.files import sync, temporary_sibling

WRITTEN = ("jsonl", "json", "csv", "tsv", "txt", "parquet")
"""Suffixes that are written, all but parquet also with `.gz`."""
_TABLES = ("csv", "tsv", "parquet")


class RowWriter:
    """Writes rows to a file that appears when the `with` block ends without an exception.

    Args:
        path: the file; its suffix says how it is written.
        replace: whether it may take the place of a file that is there.

    Attributes:
        rows: rows written so far.
        is_table: whether each row has the columns of all.
        blank: what a reader finds in a column that a row has not.

    Raises:
        UserError: the suffix is unknown, the file is there already, or its folder is not.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
        self._packed = suffixes[-1:] == ["gz"]
        self._kind = "".join((suffixes[:-1] if self._packed else suffixes)[-1:])
        if self._kind not in WRITTEN or (self._packed and self._kind == "parquet"):
            hint = f"End it in .{', .'.join(WRITTEN)} (all but parquet also .gz)."
            raise UserError("does not say how to write it", where=shown(path), hint=hint)
        if path.exists() and not replace:
            raise UserError("is there already", where=shown(path), hint="Choose another name, or give --force.")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder `{shown(path.parent)}`", where=shown(path), hint="Make it first.")
        self.path, self.rows = path, 0
        self.is_table = self._kind in _TABLES
        self._temporary = temporary_sibling(path)
        self.blank = None if self._kind == "parquet" else ""
        self._columns: dict[str, Any] = {}

    def __enter__(self) -> RowWriter:
        try:
            self._raw = self._temporary.open("wb")
        except PermissionError as error:
            raise UserError("may not be written (permission denied)", where=shown(self.path)) from error
        self._out: Any = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if self._packed else self._raw
        self._waiting = tempfile.TemporaryFile(dir=self.path.parent) if self._kind in _TABLES else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        done = False
        try:
            if kind is None:
                self._finish()
                done = True
        finally:
            if self._waiting:
                self._waiting.close()
            if self._out is not self._raw:
                self._out.close()
            self._raw.close()
            if not done:
                self._temporary.unlink(missing_ok=True)
        if done:
            sync(self._temporary)
            self._temporary.replace(self.path)
            sync(self.path.parent)

    def write(self, row: Any) -> None:
        """Write one row.

        Raises:
            RowError: the file cannot hold it: half a character, a list in a table, or no text in a `.txt`.
        """
        if self._kind == "txt":
            text = f"{_document(row)}\n{END_OF_TEXT}\n"
        elif self._kind == "json":
            text = ("[\n" if not self.rows else ",\n") + _dump(row)
        else:
            text = _dump(row) + "\n"
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise RowError("holds half of a surrogate pair, which is no character") from error
        if self._waiting:
            if not isinstance(row, dict):
                raise RowError(f"a .{self._kind} file holds rows with columns, and this is a list")
            self._columns.update(self._types(row) if self._kind == "parquet" else dict.fromkeys(row))
        (self._waiting or self._out).write(data)
        self.rows += 1

    def as_read(self, row: Any) -> Any:
        """A row as a reader of the file will give it: in a table the columns seen so far are there, and in csv all cells are text.

        Raises:
            RowError: it would not be read as one row.
        """
        if self._kind == "txt":
            lines = _document(row).split("\n")
            if any(line.strip() == END_OF_TEXT for line in lines):
                raise RowError(f"a .txt file splits a document at `{END_OF_TEXT}`")
            lines = [line.rstrip("\r") for line in lines]
            while lines and not lines[0].strip():
                lines.pop(0)
            return {"text": "\n".join(lines).rstrip()}
        if self._kind not in _TABLES or not isinstance(row, dict):
            return row
        if self._kind == "parquet":
            types = {**self._columns, **self._types(row)}
            given = {name: row.get(name) if kind is not None else as_text(row.get(name)) for name, kind in types.items()}
            return {name: without_nulls(value) for name, value in given.items()}
        return {name: _cell(row.get(name)).replace("\r\n", "\n") for name in {**self._columns, **row}}

    def _types(self, row: dict[str, Any]) -> dict[str, Any]:
        """The types of the columns of a row, as far as all rows up to it have something in common."""
        empty = type_of(None)
        return {name: common(self._columns.get(name, empty), type_of(value)) for name, value in row.items()}

    def _finish(self) -> None:
        if self._kind == "json":
            self._out.write(b"\n]\n" if self.rows else b"[]\n")
        elif self._waiting and self._kind == "parquet":
            self._waiting.seek(0)
            write_parquet(self._out, self._waiting, self._columns)
        elif self._waiting:
            for line in self._table():
                self._out.write(line.encode())

    def _table(self) -> Iterator[str]:
        """The lines of the table: its header, then the rows that were waiting."""
        assert self._waiting is not None
        self._waiting.seek(0)
        if self._columns:
            yield self._line(self._columns)
        for waiting in self._waiting:
            row = json.loads(waiting)
            yield self._line(_cell(row.get(name)) for name in self._columns)

    def _line(self, cells: Iterable[str]) -> str:
        line = io.StringIO()
        separator = "\t" if self._kind == "tsv" else ","
        csv.writer(line, delimiter=separator, lineterminator="\r\n").writerow(cells)  # so that it quotes both characters
        return line.getvalue()[:-2] + "\n"


def _document(row: Any) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or len(row) > 1:
        raise RowError("a .txt file holds nothing but text")
    return text


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return _dump(value)


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise RowError("is nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise RowError(f"cannot be written as JSON: {error}") from error
