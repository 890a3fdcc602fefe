"""Files that are either whole or absent: atomic writes, folder locks, checksums and the cache folder.

Every durable thing that Luthier writes (a checkpoint, a token store, a status file) is made under a temporary name on the same
file system, flushed to disk, and renamed. A reader therefore never sees half of it, whatever killed the writer.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""Prefix of names that are still being written; readers ignore them and writers may clean them."""


def cache_home() -> Path:
    """Luthier's cache folder: `$LUTHIER_CACHE`, else `$XDG_CACHE_HOME/luthier`, else `~/.cache/luthier`."""
    if own := os.environ.get("LUTHIER_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier"


def sync(path: Path) -> None:
    """Flush one file or folder entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` with `data` so that a reader sees the old content or the new, never a mixture."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON, atomically."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` for building it; `publish` renames it into place."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def publish(temporary: Path, path: Path) -> None:
    """Flush every file of the folder `temporary`, rename it to `path`, and flush the rename itself.

    Files get the folder's own permissions: safetensors makes its files readable by their owner alone, and a team shares runs.
    """
    readable = temporary.stat().st_mode & 0o666
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            file.chmod(readable)
        sync(file)
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left under temporary names in `folder`. The caller holds the folder's lock."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """True if writing failed for want of room. safetensors wraps the system's error, of which only the text is left."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in numbers
    return type(error).__name__ == "SafetensorError" and any(f"(os error {number})" in str(error) for number in numbers)


class Locked(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive advisory lock on `path` (created if absent); the system frees it when the process dies.

    Raises:
        Locked: `wait` is false and another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Locked(str(path)) from error
        yield
    finally:
        os.close(descriptor)
