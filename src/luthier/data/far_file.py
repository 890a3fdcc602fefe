"""A far file read where it lies, in pieces, so that a stream needs no room on the disk for what it passes by.

Only what is asked for is fetched, in the pieces of a few megabytes that fsspec reads ahead: JSON lines go on from a byte, parquet from a
group of rows. A connection that breaks is made anew at the byte where it broke, a few times and later each time, before the reader is
told. A server that gives a file only from its beginning on is read from there, up to the place.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from typing import Any

from luthier.errors import UserError

PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each new attempt."""
_BLOCK = 1 << 20


class FarFile(io.RawIOBase):
    """The bytes of a file that lies elsewhere.

    Args:
        name: its address, for messages.
        opener: opens it at its first byte; called again after a connection broke.
    """

    def __init__(self, name: str, opener: Callable[[], Any]) -> None:
        self._address, self._opener = name, opener
        self._file: Any = None
        self._place = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any byte on; what its server does not know the size of cannot."""
        return bool(self._tried(_is_seekable))

    def tell(self) -> int:
        """The next byte to be read."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on at another byte."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: None}[whence]
        self._place = offset + (self._tried(_size) if base is None else base)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """The next bytes, as many as there are and fit.

        Raises:
            UserError: the file is gone, or cannot be reached after several attempts.
        """
        wanted = len(buffer)
        found = self._tried(lambda file: _read_at(file, self._place, wanted))
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)

    def close(self) -> None:
        """Let the connection go."""
        self._let_go()
        super().close()

    def _tried(self, what: Callable[[Any], Any]) -> Any:
        """What a function of the opened file gives, which may need several attempts."""
        for pause in (*PAUSES, None):
            try:
                if self._file is None:
                    self._file = self._opener()
                return what(self._file)
            except FileNotFoundError as error:
                raise UserError("there is nothing at this address any more", where=self._address) from error
            except Exception as error:  # whatever the client of a protocol raises
                self._let_go()
                if pause is None:
                    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    hint = "See to the network; a run goes on with `luthier resume`."
                    raise UserError(f"cannot be read on ({said})", where=self._address, hint=hint) from error
                time.sleep(pause)
        raise AssertionError("the last attempt gives or raises")

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _is_seekable(file: Any) -> bool:
    return file.seekable() and _size(file) is not None


def _size(file: Any) -> int | None:
    """Bytes of an opened file; None where its server does not say."""
    return getattr(file, "size", None)


def _read_at(file: Any, place: int, wanted: int) -> bytes:
    """Bytes from a place on."""
    if file.tell() != place:
        if _is_seekable(file):
            file.seek(place)
        else:
            _pass_by(file, place - file.tell())
    return bytes(file.read(wanted))


def _pass_by(file: Any, count: int) -> None:
    """Read so many bytes and forget them.

    Raises:
        OSError: the file ends before, or they lie behind.
    """
    while count > 0 and (block := file.read(min(count, _BLOCK))):
        count -= len(block)
    if count:
        raise OSError("the server gives the file only from its beginning on")
