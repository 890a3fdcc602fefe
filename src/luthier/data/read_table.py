"""Rows of tables: csv and parquet. A row is a mapping from column names to values.

The line of a csv row is where it begins: quoted fields may hold line ends. A row with more or fewer fields than the header is a
problem and not padded, since nobody can tell which field is missing. Where the quotes of a row over several lines are broken, nobody
can tell which of these lines are rows of their own, so that is fatal. Between tabs a quote is often just text: a line whose quotes
are broken there is cut at its tabs. CRLF is read as LF, inside quotes too: it is how the file was
saved and no part of the text. Parquet has no lines; its rows are numbered from 1.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from luthier.data.examples import Origin
from luthier.data.problems import RowProblem
from luthier.data.read_json import Row
from luthier.data.textfile import File, open_bytes, read_lines, shown
from luthier.errors import UserError

_BATCH = 1024


class _Feed:
    """The lines of a file for `csv.reader`, which asks for just as many as a row needs."""

    def __init__(self, path: File) -> None:
        self.lines = read_lines(path)
        self.number = 0
        self.problem: RowProblem | None = None
        self.last = ""

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        self.number, line = next(self.lines)
        if isinstance(line, RowProblem):
            self.problem = line
            return "\n"
        self.last = line.replace("\r\n", "\n")
        return self.last


def read_csv(path: File, delimiter: str | None = None, *, headless: bool = False) -> Iterator[Row]:
    """Rows of a csv file with a header; its delimiter is `delimiter`, or the one of comma, semicolon and tab the header uses.

    Without a header (`headless`) the columns are called `1`, `2`, … and the first line, of which there are as many, is a row.
    """
    csv.field_size_limit(sys.maxsize)
    feed, file = _Feed(path), shown(path)
    header_line = next((line for line in feed if line.strip()), "")
    delimiter = delimiter or max(",;\t", key=header_line.count)
    try:
        header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise UserError(f"broken csv: {error}", where=f"{file}:{feed.number}") from error
    if headless:
        header, feed = [str(number) for number in range(1, len(header) + 1)], _Feed(path)
    doubled = [name for name in header if header.count(name) > 1]
    if doubled:
        raise UserError(f"column `{doubled[0]}` is there twice", where=f"{file}:{feed.number}")
    reader, row = csv.reader(feed, delimiter=delimiter, strict=True), 0
    while True:
        line = feed.number + 1
        feed.problem = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            swallowed = feed.number > line
            bare = [] if swallowed or delimiter != "\t" else feed.last.rstrip("\n").split("\t")
            problem = RowProblem(f"broken csv: {error}", fatal=swallowed)
            yield Origin(file, line, row), dict(zip(header, bare, strict=True)) if len(bare) == len(header) else problem
            if swallowed:
                return
            row += 1
            continue
        if feed.problem is not None:
            yield Origin(file, line, row), feed.problem
        elif not cells:
            continue
        elif len(cells) != len(header):
            yield Origin(file, line, row), RowProblem(f"number of fields is {len(cells)}, but the header names {len(header)}")
        else:
            yield Origin(file, line, row), dict(zip(header, cells, strict=True))
        row += 1


def read_parquet(path: File, first: int = 0) -> Iterator[Row]:
    """Rows of a parquet file, a batch at a time, from row `first` on; groups of rows before it are not read."""
    import pyarrow
    import pyarrow.parquet

    file = shown(path)
    with open_bytes(path) as stream:
        packed = stream.peek(4)[:4] != b"PAR1"
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            ends = list(accumulate(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)))
            groups = [group for group, end in enumerate(ends) if end > first]
            row = ends[groups[0] - 1] if groups and groups[0] else 0
            for batch in table.iter_batches(batch_size=_BATCH, row_groups=groups) if groups else ():
                for value in batch.to_pylist():
                    if row >= first:
                        yield Origin(file, row + 1, row), {name: without_nulls(part) for name, part in value.items()}
                    row += 1
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
            said = str(error).splitlines()[0]
            what = "is not a parquet file" if packed else f"cannot be read as parquet: {said}"
            raise UserError(what, where=file) from error


def without_nulls(value: Any) -> Any:
    """A value without the nulls in its mappings: parquet gives each mapping in a column the keys of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value
