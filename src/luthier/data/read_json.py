r"""Rows of JSON files, told apart by content: an array, one value a line (JSON lines), or values written one after another.

File names do not decide: arrays in `.jsonl` and lines in `.json` exist in the wild. JSON lines are read as a stream. An array is
decoded row by row from the text, which is held in memory while the rows are not; the line of a row is counted on the way.

A broken line of JSON lines is one bad row. In an array nothing after the break can be read with certainty, so it is fatal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from luthier.data.examples import Origin
from luthier.data.problems import RowProblem
from luthier.data.textfile import File, Mark, read_lines, read_text, shown

Row = tuple[Origin, Any]

_SPACE = re.compile(r"[ \t\n\r]*")
_ESCAPED_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
_DECODER = json.JSONDecoder()
_TOO_LONG = "holds a whole number of thousands of digits"
_TOO_DEEP = "is nested too deeply"
_NOT_UNICODE = r"holds half of a surrogate pair (`\ud83d` alone), which is not text"


def read_json(path: File, mark: Mark | None = None) -> Iterator[Row]:
    """Rows of a JSON file of any layout, from a mark on, which follows them. Only lines can be read from anywhere."""
    layout, mark = _layout(path), mark or Mark()
    if layout == "lines":
        return _lines(path, mark) if mark.offset or not mark.row else islice(_lines(path, Mark()), mark.row, None)
    return islice(_array(path) if layout == "array" else _values(path), mark.row, None)


def _layout(path: File) -> Literal["lines", "array", "values"]:
    """How the file is laid out, from its first two lines that are not blank."""
    first, second = "", ""
    for _, line in read_lines(path):
        if isinstance(line, RowProblem) or line.strip():
            text = "" if isinstance(line, RowProblem) else line.strip()
            if first:
                second = text
                break
            first = text
    if first[:1] == "[":
        complete = first[-1] == "]" and (second[:1] == "[" or (second and _parses(first)))
        return "lines" if complete else "array"
    if first[:1] == "{":
        return "lines" if second[:1] == "{" or _parses(first) else "values"
    return "lines"


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: File, mark: Mark) -> Iterator[Row]:
    """One value a line; blank lines do not count."""
    file, row = shown(path), mark.row
    for number, line in read_lines(path, mark):
        if isinstance(line, RowProblem):
            yield Origin(file, number, row), line
        elif not line.isspace():
            yield Origin(file, number, row), _parse_line(line.rstrip("\r\n"))
        else:
            continue
        row += 1


def _parse_line(line: str) -> Any:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return RowProblem(f"broken JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        return RowProblem(_TOO_DEEP)
    except ValueError:
        return RowProblem(_TOO_LONG)
    return _checked(value) if _ESCAPED_SURROGATE.search(line) else value


def _array(path: File) -> Iterator[Row]:
    """The entries of one array. An array of messages is one row: a conversation without a key around it."""
    text, file = read_text(path), shown(path)
    start = _skip(text, 0)
    rows = _entries(text, start + 1, file)
    first = next(rows, None)
    if first is None:
        return
    origin, value = first
    if isinstance(value, dict) and isinstance(value.get("role"), str) and ("content" in value or "tool_calls" in value):
        entries = [value, *(entry for _, entry in rows)]
        broken = [entry for entry in entries if isinstance(entry, RowProblem)]
        yield origin, broken[0] if broken else entries
        return
    yield first
    yield from rows


def _entries(text: str, position: int, file: str) -> Iterator[Row]:
    """The entries of an array whose bracket was opened just before `position`."""
    check = _ESCAPED_SURROGATE.search(text) is not None
    line, row = 1 + text.count("\n", 0, position), 0
    while True:
        start = _skip(text, position)
        line += text.count("\n", position, start)
        if row == 0 and text[start : start + 1] == "]":
            position = start
            break
        value, position = _decode(text, start)
        if isinstance(value, RowProblem):
            yield Origin(file, 1 + text.count("\n", 0, position), row), value
            return
        yield Origin(file, line, row), _checked(value) if check else value
        row += 1
        comma = _skip(text, position)
        line += text.count("\n", start, comma)
        position = comma
        if text[position : position + 1] != ",":
            break
        position += 1
    yield from _ending(text, position, Origin(file, line, row))


def _ending(text: str, position: int, origin: Origin) -> Iterator[Row]:
    """What is wrong with the end of an array, at the place where its bracket should close."""
    if text[position : position + 1] != "]":
        missing = "the array is not closed with `]`" if position == len(text) else "Expecting ',' delimiter"
        yield origin, RowProblem(f"broken JSON: {missing}", fatal=True)
    elif (rest := _skip(text, position + 1)) < len(text):
        line = origin.line + text.count("\n", position, rest)
        yield Origin(origin.file, line, origin.row), RowProblem("broken JSON: text after the end of the array", fatal=True)


def _values(path: File) -> Iterator[Row]:
    """Values one after another, each over as many lines as it likes."""
    text, file = read_text(path), shown(path)
    check = _ESCAPED_SURROGATE.search(text) is not None
    position, line, row = 0, 1, 0
    while (start := _skip(text, position)) < len(text):
        line += text.count("\n", position, start)
        value, position = _decode(text, start)
        if isinstance(value, RowProblem):
            yield Origin(file, 1 + text.count("\n", 0, position), row), value
            return
        yield Origin(file, line, row), _checked(value) if check else value
        line += text.count("\n", start, position)
        row += 1


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The value at `start` and where it ends, or a fatal `RowProblem` and where it was noticed."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return RowProblem(f"broken JSON: {error.msg} (column {error.colno})", fatal=True), error.pos
    except RecursionError:
        return RowProblem(_TOO_DEEP, fatal=True), start
    except ValueError:
        return RowProblem(_TOO_LONG, fatal=True), start


def _skip(text: str, position: int) -> int:
    """The next position that holds no white space."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _checked(value: Any) -> Any:
    r"""The value, or a `RowProblem` if a string in it is not text: `\ud83d` without its other half, which no tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return RowProblem(_NOT_UNICODE)
    except RecursionError:
        return RowProblem(_TOO_DEEP)
    return value
