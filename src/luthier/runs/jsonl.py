"""Append-only files of JSON lines, written so that a kill at any moment costs at most the line that was being written.

A line is handed to the system in one write, so a killed process leaves whole lines; a power cut or a full disk may leave a torn
one at the end. A reader takes a line only once its line feed is there, and the next writer mends the tail before it appends.
Offsets of line ends are therefore stable: "the bytes after offset n" is a cursor that a follower can keep for ever.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16


class JsonLines:
    """The one writer of one file of JSON lines.

    Each record gets a `seq`: 0 for the first line of the file, then one more for each, across all attempts of the run.

    Raises:
        OSError: the file cannot be opened or the disk is full; no partial line stays behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._end, last = _mend(self._descriptor)
        self.next_seq = int(last.get("seq", -1)) + 1 if last else 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write `record` as one line, with its `seq` in front; numbers that are not finite become null."""
        line = json.dumps(finite({"seq": self.next_seq, **record}), ensure_ascii=False, allow_nan=False, default=str)
        data = line.encode("utf-8", errors="replace") + b"\n"
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(data)
        self.next_seq += 1

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def _mend(descriptor: int) -> tuple[int, dict[str, Any] | None]:
    """Make the file end after a whole line; returns its size in bytes and its last record.

    A tail that is a whole record without its line feed gets one; any other torn tail is cut off.
    """
    size = os.fstat(descriptor).st_size
    tail, start = b"", size
    while start > 0 and tail.count(b"\n") < 2:  # two line feeds enclose one line that is surely whole
        start = max(0, start - _BLOCK)
        tail = os.pread(descriptor, size - start, start)
    lines = tail.split(b"\n")
    if torn := lines.pop() if lines else b"":
        if (record := parse(torn)) is not None:
            os.write(descriptor, b"\n")
            return size + 1, record
        size -= len(torn)
        os.ftruncate(descriptor, size)
    return size, parse(lines[-1]) if lines else None


def parse(line: bytes) -> dict[str, Any] | None:
    """The record of one line, or None when the line is torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole records after byte `offset`, and the offset to go on from; a missing file has none."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    records = [record for line in data[:end].split(b"\n") if (record := parse(line)) is not None]
    return records, offset + end


def finite(value: Any) -> Any:
    """`value` with every number that JSON cannot hold (NaN, infinities) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
