"""The files of a source, near or far, before anything of them is read."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luthier.data.textfile import File, Remote, shown

KINDS = ("json", "jsonl", "csv", "tsv", "parquet", "txt")
"""Kinds of files, by their suffix; each may also be packed (`.gz`, `.zst`)."""

_DATA = re.compile(rf"\.({'|'.join(KINDS)}|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)
_ABOUT = (
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
    "readme.txt",
    "license.txt",
    "requirements.txt",
    "mapping.json",
)


@dataclass(frozen=True)
class Part:
    """One file of a source.

    Args:
        name: how it is called in messages.
        fetch: gives it as a file on this disk, downloaded if need be.
        version: identifies its content without fetching it; None for a file on this disk, whose content is hashed.
        suffixes: of its name, which say what kind of file it is.
        where_it_lies: opens it far away, to be read in pieces; None where it has to be fetched.
        commit: of the data set on a hub to which it belongs.
    """

    name: str
    fetch: Callable[[], Path]
    version: str | None = None
    suffixes: tuple[str, ...] = ()
    where_it_lies: Callable[[], io.RawIOBase] | None = None
    commit: str | None = None

    def file(self, *, on_the_way: bool = False) -> File:
        """The file to read, under its own name wherever it is kept.

        Args:
            on_the_way: read it where it lies, if it can be, and keep no copy.
        """
        if self.version is None:
            return self.fetch()
        if on_the_way and self.where_it_lies:
            return Remote(self.name, self.where_it_lies, self.suffixes)
        copy = cache(self.fetch)  # a file is opened more than once while it is read
        return Remote(self.name, lambda: io.FileIO(copy()), self.suffixes)


def local_part(file: Path) -> Part:
    """A file on this disk as a part."""
    return Part(shown(file), lambda: file, None, tuple(file.suffixes))


def has_data_suffix(name: str) -> bool:
    """Whether a name ends as the data files do that Luthier reads."""
    return _DATA.search(name) is not None


def is_data(name: str) -> bool:
    """Whether a file in a folder or on a hub holds data: by its ending, and not hidden or one that describes the others."""
    parts = name.lower().split("/")
    return has_data_suffix(name) and parts[-1] not in _ABOUT and not any(part.startswith(".") for part in parts)
