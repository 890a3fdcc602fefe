"""From a file to rows, each with the line it begins on.

A row that cannot be read does not end the reading: a `RowProblem` stands in its place. What is wrong with the file as a whole
(missing, empty, damaged, of an unknown kind) is a `UserError`.

Files are read as streams where their layout allows it: JSON lines, csv, txt and parquet take the memory of one row or batch,
however large the file is. Of a JSON array the text is held (see `read_json`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from luthier.data.examples import Origin
from luthier.data.parts import KINDS
from luthier.data.problems import RowProblem
from luthier.data.read_json import Row, read_json
from luthier.data.read_table import read_csv, read_parquet
from luthier.data.textfile import File, Mark, open_bytes, read_lines, shown
from luthier.errors import UserError

Documents = Literal["auto", "line", "paragraph", "file"]
"""How a text file is split into documents."""
END_OF_TEXT = "<|endoftext|>"
"""Alone on a line, it separates the documents of a text file."""


def read_rows(path: File, *, documents: Documents = "auto", headless: bool = False, mark: Mark | None = None) -> Iterator[Row]:
    """Yield `(origin, row)` for each row of a data file; the row is a `RowProblem` where it could not be read.

    Args:
        path: the file.
        documents: how a text file is split.
        headless: a csv file has no header; its columns are called `1`, `2`, …
        mark: where to begin; it follows the rows. JSON lines and parquet begin there, other files are read up to there.

    Raises:
        UserError: the file is missing, empty, damaged, or of an unknown kind.
    """
    with open_bytes(path) as file:
        head = file.read(4096)
        if not head:
            raise UserError("is empty", where=shown(path))
    mark = mark or Mark()
    rows, begun = _reader(path, head, documents, headless, mark), mark.row > 0
    for origin, row in rows:
        mark.row, begun = origin.row + 1, True
        yield origin, row
    if not begun:
        raise UserError("is empty: it holds no rows", where=shown(path))


def _reader(path: File, head: bytes, documents: Documents, headless: bool, mark: Mark) -> Iterator[Row]:
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind == "parquet" or head[:4] == b"PAR1":
        return read_parquet(path, mark.row)
    if kind in ("csv", "tsv"):
        return islice(read_csv(path, "\t" if kind == "tsv" else None, headless=headless), mark.row, None)
    if kind == "txt":
        return islice(read_documents(path, documents), mark.row, None)
    if kind in ("json", "jsonl", "ndjson") or head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return read_json(path, mark)
    raise UserError("is of an unknown kind", where=shown(path), hint=f"Known: {', '.join(KINDS)}, each also .gz or .zst.")


def read_documents(path: File, documents: Documents = "auto") -> Iterator[Row]:
    """Documents of a text file, each as `{"text": …}`.

    Args:
        path: the file.
        documents: `line` makes each line one, `paragraph` splits at blank lines, `file` makes the whole file one. By default they are
            separated by lines that hold only `<|endoftext|>`, if there are such; else by blank lines, if there are such between
            lines of text; else each line is one.
    """
    file = shown(path)
    separator = {"line": "line", "paragraph": "", "file": "file", "auto": None}[documents]
    for row, (begin, document) in enumerate(_split(path, _separator(path) if separator is None else separator)):
        yield Origin(file, begin, row), document if isinstance(document, RowProblem) else {"text": document}


def _split(path: File, separator: str) -> Iterator[tuple[int, str | RowProblem]]:
    r"""Documents with the line they begin on; line ends inside become `\n`."""
    parts: list[str] = []
    begin = 0
    for number, line in read_lines(path):
        if isinstance(line, RowProblem):
            yield number, line
            continue
        ends = separator == "line" or (separator != "file" and line.strip() == separator)
        if (separator == "line" or not ends) and (parts or line.strip()):
            begin = begin if parts else number
            parts.append(line.rstrip("\r\n"))
        if ends and parts:
            yield begin, "\n".join(parts).rstrip()
            parts = []
    if parts:
        yield begin, "\n".join(parts).rstrip()


def _separator(path: File) -> str:
    """What separates the documents: `END_OF_TEXT`, the empty string for blank lines, or `line`."""
    text_seen, blank_after, blank_between = False, False, False
    for _, line in read_lines(path):
        text = "x" if isinstance(line, RowProblem) else line.strip()
        if text == END_OF_TEXT:
            return END_OF_TEXT
        blank_between = blank_between or (blank_after and bool(text))
        blank_after = blank_after or (text_seen and not text)
        text_seen = text_seen or bool(text)
    return "" if blank_between else "line"
