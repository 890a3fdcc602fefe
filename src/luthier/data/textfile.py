r"""A file as text, whatever it was saved as: plain, gzip or Zstandard, UTF-8 with or without BOM, UTF-16 with BOM, or GB18030.

GB18030 (of which GBK and GB2312 are parts) is what Chinese spreadsheets save. Nothing in a file says so, so it is detected, and
only when the bytes are not UTF-8 anyway; then it is decoded strictly, because a wrong guess would train on gibberish. Any other
encoding is refused with its likely name. The decision needs only the first part of the file that is not ASCII, so that a file of
any size is read once and line by line.

Lines end at `\n` and nowhere else: JSON strings may hold U+2028 and other characters that Python calls line ends.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.problems import RowProblem
from luthier.errors import UserError, nearest

_BUFFER = 1 << 18
_SAMPLE = 1 << 16
_BLOCK = 1 << 24
LARGEST = 1 << 32
"""Bytes that are held at once: of a line, or of a file that is read as a whole, as JSON arrays are."""
_CANDIDATES = ["gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "cp1251"]
_NO_PLACE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Remote:
    """A file that lies elsewhere.

    Args:
        name: how it is called in messages: its address.
        open: opens it at its first byte, as a copy on this disk or where it lies.
        suffixes: of its name, which say what kind of file it is.
    """

    name: str
    open: Callable[[], io.RawIOBase]
    suffixes: tuple[str, ...] = ()


File = Path | Remote
"""What is read."""


def shown(path: File) -> str:
    """The path as it is named to people: relative to the working directory when it lies below; an address as it is."""
    if isinstance(path, Remote):
        return path.name
    absolute, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(absolute, here) if absolute.startswith(here.rstrip(os.sep) + os.sep) else str(path)


@contextmanager
def open_bytes(path: File) -> Iterator[io.BufferedReader[Any]]:
    """The content of a file, decompressed if it begins as gzip or Zstandard does.

    Raises:
        UserError: the file is missing (the hint names the nearest one there), unreadable, or its compressed data is damaged.
    """
    try:
        with io.BufferedReader(path.open() if isinstance(path, Remote) else io.FileIO(path), _BUFFER) as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER) as unpacked:
                    yield unpacked
            elif file.peek(4)[:4] == _ZSTANDARD:
                with _unpacked(file, path) as unpacked:
                    yield unpacked
            else:
                yield file
    except FileNotFoundError as error:
        raise UserError("no such file", where=shown(path), hint=_nearest_file(path)) from error
    except IsADirectoryError as error:
        raise UserError("is a folder, not a file", where=shown(path)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"the gzip data is damaged: {error}", where=shown(path), hint="Fetch the file again.") from error
    except PermissionError as error:
        raise UserError("may not be read (permission denied)", where=shown(path)) from error
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise UserError(f"is no place of a file: {os.strerror(error.errno).lower()}", where=shown(path)) from error


def _unpacked(file: io.BufferedReader[Any], path: File) -> io.BufferedReader[Any]:
    """The content of Zstandard data. Only files that are so packed load pyarrow for it."""
    import pyarrow

    class _Stream(io.RawIOBase):
        stream = pyarrow.CompressedInputStream(file, "zstd")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            try:
                block = self.stream.read(len(buffer))
            except OSError as error:
                raise UserError("the Zstandard data is damaged", where=shown(path), hint="Fetch the file again.") from error
            buffer[: len(block)] = block
            return len(block)

    return io.BufferedReader(_Stream(), _BUFFER)


def _nearest_file(path: File) -> str | None:
    if isinstance(path, Remote):
        return None
    if not path.parent.is_dir():
        return f"There is no folder `{shown(path.parent)}`."
    best = nearest(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()])
    return f"Did you mean `{shown(path.parent / best)}`?" if best else None


@dataclass
class Mark:
    """Where reading stands in a file, so that it can go on there.

    Attributes:
        row: rows read.
        line: lines read; 0 in files that are not read line by line.
        offset: bytes of these lines, unpacked.
        encoding: theirs, once something beyond ASCII was met.
    """

    row: int = 0
    line: int = 0
    offset: int = 0
    encoding: str | None = None


def read_lines(path: File, mark: Mark | None = None) -> Iterator[tuple[int, str | RowProblem]]:
    r"""Numbered lines (from 1) with their `\n`, read as they are asked for; a line that does not decode is a `RowProblem`.

    Args:
        path: the file.
        mark: where to begin; it follows what is read, except in UTF-16, where the whole file is decoded at once.
    """
    mark = mark or Mark()
    with open_bytes(path) as file:
        _advance(file, mark.offset)
        if not mark.offset and file.peek(2)[:2] in _UTF16:
            text = _decode_whole(_whole(file, path), path)
            yield from enumerate(io.StringIO(text, newline="\n"), 1)
            return
        for number, raw in enumerate(_raw_lines(file, path, mark.line), mark.line + 1):
            mark.line = number
            mark.offset += len(raw)
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if mark.encoding is None:
                if raw.isascii():
                    yield number, raw.decode("ascii")
                    continue
                mark.encoding = _detect(raw + file.peek(_SAMPLE), path, number)
            try:
                yield number, raw.decode(mark.encoding)
            except UnicodeDecodeError as error:
                yield number, RowProblem(_undecodable(error))


def _advance(file: io.BufferedReader[Any], offset: int) -> None:
    """Go to a byte; what is packed has to be unpacked up to there."""
    if offset and file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (block := file.read(min(offset, _BUFFER))):
        offset -= len(block)


def _raw_lines(file: io.BufferedReader[Any], path: File, before: int) -> Iterator[bytes]:
    """Lines of a file, none of them endless: a small packed file may hold a line that is larger than the memory.

    Raises:
        UserError: one is longer than `LARGEST`; names it.
    """
    number = before
    while raw := file.readline(LARGEST + 1):
        number += 1
        if len(raw) > LARGEST:
            raise UserError(f"is a line of more than {_size()}", where=f"{shown(path)}:{number}", hint="Write one row a line.")
        yield raw


def _whole(file: io.BufferedReader[Any], path: File) -> bytes:
    """The whole of a file that has to be in memory.

    Raises:
        UserError: it is larger than `LARGEST`.
    """
    blocks: list[bytes] = []
    left = LARGEST
    while block := file.read(_BLOCK):
        blocks.append(block)
        left -= len(block)
        if left < 0:
            what = f"is more than {_size()} that would have to be in memory at once"
            raise UserError(what, where=shown(path), hint="Write it as JSON lines in UTF-8, which are read row by row.")
    return b"".join(blocks)


def _size() -> str:
    return f"{LARGEST >> 30} GiB" if LARGEST >> 30 else f"{LARGEST} bytes"


def read_text(path: File) -> str:
    """The whole file.

    Raises:
        UserError: some of it does not decode; names the line.
    """
    with open_bytes(path) as file:
        return _decode_whole(_whole(file, path), path)


def _decode_whole(data: bytes, path: File) -> str:
    encoding = "utf-16" if data[:2] in _UTF16 else "utf-8-sig"
    try:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            encoding = _detect(data, path, line)
            return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(_undecodable(error), where=f"{shown(path)}:{line}", hint="Save the file as UTF-8.") from error


def _undecodable(error: UnicodeDecodeError) -> str:
    name = {"utf-8-sig": "UTF-8", "gb18030": "GB18030"}.get(error.encoding, error.encoding.upper())
    return f"is not valid {name} text (byte 0x{error.object[error.start]:02x})"


def _detect(data: bytes, path: File, line: int) -> str:
    """`utf-8` or `gb18030`, judged by the part of the data that begins with the first byte beyond ASCII.

    Single lines may be damaged, so it is UTF-8 when at least half of the telling lines of that part are.
    """
    first = re.search(rb"[\x80-\xff]", data)
    begin = first.start() if first else 0
    lines = [part for part in data[begin : begin + _SAMPLE].split(b"\n") if not part.isascii()]
    if sum(_begins_as(part, "utf-8") for part in lines) * 2 >= len(lines):
        return "utf-8"
    from charset_normalizer import from_bytes

    whole = [part for part in lines if _begins_as(part, "gb18030")]
    telling = b"\n".join(whole if len(whole) * 2 >= len(lines) else lines)
    guesses = list(from_bytes(_whole_characters(telling), cp_isolation=_CANDIDATES))
    best = guesses[0] if guesses else None
    for guess in guesses:
        if guess.encoding == "gb18030" and best and (guess.chaos, guess.coherence) == (best.chaos, best.coherence):
            return "gb18030"
    likely = f" (it looks like {best.encoding})" if best else ""
    raise UserError(f"is neither UTF-8 nor GB18030 text{likely}", where=f"{shown(path)}:{line}", hint="Save the file as UTF-8.")


def _begins_as(data: bytes, encoding: str) -> bool:
    """Whether the bytes are text in this encoding, up to a character that is cut at the end."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _whole_characters(data: bytes) -> bytes:
    """The bytes without a GB18030 character that is cut at the end (of at most four bytes)."""
    decoder = codecs.getincrementaldecoder("gb18030")("replace")
    decoder.decode(data)
    left = decoder.getstate()[0]
    return data[: len(data) - len(left)]
