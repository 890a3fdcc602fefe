r"""Rows to a file: the counterpart of `read`, row by row, whole or absent.

The suffix says how: `.jsonl` one row a line, `.json` one array, `.csv` and `.tsv` a table whose columns are those of the first row,
`.txt` documents with `<|endoftext|>` between them; each also `.gz`. In a table, lists and mappings are written as JSON, as the
readers expect them. All is UTF-8 with `\n` line ends. The file is written beside its place and renamed when it is complete.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.data.problems import RowError
from luthier.data.read import END_OF_TEXT
from luthier.data.textfile import shown
from luthier.errors import UserError
from luthier.files import sync, temporary_sibling

WRITTEN = ("jsonl", "json", "csv", "tsv", "txt")
"""Suffixes that are written, each also with `.gz`."""


class RowWriter:
    """Writes rows to a file that appears when the `with` block ends without an exception.

    Args:
        path: the file; its suffix says how it is written.
        replace: whether it may take the place of a file that is there.

    Attributes:
        rows: rows written so far.

    Raises:
        UserError: the suffix is unknown, the file is there already, or its folder is not.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
        packed = suffixes[-1:] == ["gz"]
        kind = "".join((suffixes[:-1] if packed else suffixes)[-1:])
        if kind not in WRITTEN:
            raise UserError("does not say how to write it", where=shown(path), hint=f"End it in .{', .'.join(WRITTEN)} (or .gz).")
        if path.exists() and not replace:
            raise UserError("is there already", where=shown(path), hint="Choose another name, or give --force.")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder `{shown(path.parent)}`", where=shown(path), hint="Make it first.")
        self.path, self.rows = path, 0
        self._kind, self._packed = kind, packed
        self._temporary = temporary_sibling(path)
        self._columns: list[str] = []
        self._table: Any = None

    def __enter__(self) -> RowWriter:
        try:
            self._raw = self._temporary.open("wb")
        except PermissionError as error:
            raise UserError("may not be written (permission denied)", where=shown(self.path)) from error
        self._bytes: Any = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if self._packed else self._raw
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._kind == "json":
                self._bytes.write(b"\n]\n" if self.rows else b"[]\n")
        finally:
            if self._bytes is not self._raw:
                self._bytes.close()
            self._raw.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        sync(self._temporary)
        self._temporary.replace(self.path)
        sync(self.path.parent)

    def write(self, row: Any) -> None:
        """Write one row.

        Raises:
            RowError: the file cannot hold it: half a character, columns that the first row has not, or no text in a `.txt`.
        """
        make: dict[str, Callable[[Any], str]] = {"json": self._json, "jsonl": self._jsonl, "txt": self._document}
        text = make.get(self._kind, self._cells)(row)
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise RowError("holds half of a surrogate pair, which is no character") from error
        self._bytes.write(data)
        self.rows += 1

    def _json(self, row: Any) -> str:
        return ("[\n" if not self.rows else ",\n") + _dump(row)

    def _jsonl(self, row: Any) -> str:
        return _dump(row) + "\n"

    def _document(self, row: Any) -> str:
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or len(row) > 1:
            raise RowError("a .txt file holds nothing but text")
        return f"\n{END_OF_TEXT}\n{text}" if self.rows else text

    def _cells(self, row: Any) -> str:
        """A line of a table, under the header if it is the first."""
        if not isinstance(row, dict):
            raise RowError(f"a .{self._kind} file holds rows with columns, and this is a list")
        if unknown := [name for name in row if name not in self._columns] if self.rows else []:
            raise RowError(f"has `{unknown[0]}`, which is no column of the first row; write .jsonl instead")
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t" if self._kind == "tsv" else ",", lineterminator="\n")
        if not self.rows:
            self._columns = list(row)
            writer.writerow(self._columns)
        writer.writerow([_cell(row.get(name)) for name in self._columns])
        return table.getvalue()


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
