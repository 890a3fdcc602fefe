r"""The file that answers are written to, one JSON line each: whole lines at any moment, and known by what they answer.

    {"messages": [..., {"role": "assistant", "content": ...}], "row": 7, "choice": 0, "finish_reason": "stop", "key": "9f3c…-51d0…-e07a…"}

A line is a conversation to learn from, and says which row it answers. Its key has three hashes: of the model, of the settings and of
the question. Whoever goes on with a file that is there checks the key of every line, so a file never holds answers of two models; what
differs is named. Lines stand in the order of the rows. A line is handed to the system in one write and the file is flushed to disk now
and then: a kill costs the line that was being written, whose torn half is cut off when one goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.files import Locked, lock
from luthier.runs.jsonl import parse

FLUSHED = 5.0
"""Seconds between two flushes to disk."""
PARTS = ("another model", "other settings", "another question")
"""What the parts of a key tell, in words for when they differ."""
BEGINNING = b'{"messages"'
"""Of every line."""
_ELSE = "Go on with the same ones, write to another file, or begin anew with `--restart`."


class AnswerFile:
    """Answers, in order.

    Args:
        path: of the file; made if it is not there.
        keys: of every line that is to be written, in order.
        restart: forget what is there.

    Attributes:
        done: lines that are there.

    Raises:
        UserError: the file holds something else, or answers of another model, with other settings, to other questions.
    """

    def __init__(self, path: Path, keys: Sequence[str], *, restart: bool = False) -> None:
        self.path, self._keys = path, keys
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            end, self.done = self._check(restart)
            os.ftruncate(self._descriptor, end)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._flushed = time.monotonic()

    @classmethod
    @contextmanager
    def open(cls, path: Path, keys: Sequence[str], *, restart: bool = False) -> Iterator[AnswerFile]:
        """The file, locked against a second writer, and flushed at the end. Arguments and errors are those of the class.

        Raises:
            UserError: another process writes it, or it cannot be made.
        """
        try:
            new = not path.exists()
            with lock(path, wait=False):
                file = cls(path, keys, restart=restart)
                try:
                    yield file
                finally:
                    file.close()
        except Locked:
            raise UserError("another process is writing it", where=str(path)) from None
        except (IsADirectoryError, PermissionError, NotADirectoryError) as error:
            raise UserError(f"cannot be written: {error.strerror}", where=str(path)) from None
        finally:
            if new and path.is_file() and not path.stat().st_size:
                path.unlink()

    def append(self, line: Mapping[str, Any]) -> None:
        """Write the next line; its key is added."""
        record = {**line, "key": self._keys[self.done]}
        data = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        end = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            os.ftruncate(self._descriptor, end)
            raise
        self.done += 1
        if time.monotonic() - self._flushed > FLUSHED:
            os.fsync(self._descriptor)
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _check(self, restart: bool) -> tuple[int, int]:
        """Bytes and number of the whole lines that are there, all of which belong here."""
        end = count = 0
        with self.path.open("rb") as file:
            for data in file:
                record = parse(data) if data.endswith(b"\n") else None
                if not data.endswith(b"\n") and (count or BEGINNING.startswith(data[: len(BEGINNING)])):
                    break  # torn
                key = str(record.get("key", "")) if record else ""
                if key.count("-") != len(PARTS) - 1:
                    raise UserError(
                        "holds something else than answers", where=f"{self.path}:{count + 1}", hint="Choose another name."
                    )
                if restart:
                    return 0, 0
                self._compare(key, count)
                end += len(data)
                count += 1
        return end, count

    def _compare(self, key: str, number: int) -> None:
        where = f"{self.path}:{number + 1}"
        if number >= len(self._keys):
            raise UserError(f"it has more answers than the {len(self._keys)} that are asked for", where=where, hint=_ELSE)
        pairs = zip(key.split("-"), self._keys[number].split("-"), PARTS, strict=True)
        if differing := [what for there, wanted, what in pairs if there != wanted]:
            raise UserError(f"was answered with {' and '.join(differing)}", where=where, hint=_ELSE)
