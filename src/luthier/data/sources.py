"""From what a recipe names as a source to its files: a file, a folder, a glob, an address, a data set on a hub, or own code.

    data/talk.jsonl        data/            data/*.jsonl.gz        s3://bucket/talk.jsonl        owner/name        {python: rows.py:load}

A source has *parts*, one for each file. A part far away is fetched when its rows are asked for, so `max_examples` of a large data set
fetches the first files of it and no more; what it is kept under is known before, so the cache of token stores need not fetch it at all.
A stream fetches nothing, it reads each part where it lies. Rows are told by the part's own name, wherever it is kept.
All files of a source have one format.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from luthier.data.parts import Part, is_data, local_part
from luthier.data.read import read_rows
from luthier.data.read_json import Row
from luthier.data.store_cache import content_digest
from luthier.data.textfile import open_bytes, shown
from luthier.errors import UserError
from luthier.recipe.paths import is_address, is_hub_id
from luthier.recipe.schema import Source

_MAGIC = re.compile(r"[*?\[]")


def rows_of(source: Source, *, on_the_way: bool = False) -> Iterator[Row]:
    """Yield `(origin, row)` for each row of a source, one file after the other.

    Args:
        source: with its path.
        on_the_way: read far files where they lie, as a stream does; else they are fetched.

    Raises:
        UserError: there is no such source, or a file of it cannot be read.
    """
    if source.python:
        from luthier.data.python_source import mapped_rows, yielded_rows

        yield from mapped_rows(source.python, _file_rows(source, on_the_way)) if source.path else yielded_rows(source.python)
    else:
        yield from _file_rows(source, on_the_way)


def digest_of(source: Source) -> list[Any]:
    """What identifies the content of a source: of each part its version or the hash of its content, and of own code its file's.

    Raises:
        UserError: there is no such source.
    """
    from luthier.data.python_source import code_file

    parts = parts_of(source) if source.path else ()
    digests = [[part.version or content_digest(part.fetch()), *part.suffixes] for part in parts]
    return (
        [*digests, ["python", source.python.rpartition(":")[2], content_digest(code_file(source.python))]]
        if source.python
        else digests
    )


def title_of(source: Source) -> str:
    """How a source is called: its name in the registry, its address, or its path."""
    if source.name:
        return source.name
    if not source.path:
        return shown(Path(source.python.rpartition(":")[0])) if source.python else "the source"
    return source.path if is_address(source.path) or is_on_hub(source.path, source.hub) else shown(Path(source.path))


def lines_of(source: Source) -> int:
    """Lines of the files of a source, an estimate of its rows; a file that is far away or has no lines counts as one."""
    parts = parts_of(source) if source.path else ()
    return max(1, sum(_count_lines(part.fetch()) for part in parts if part.version is None))


def file_names(source: Source) -> list[str]:
    """What the files of a source are called in messages, in the order in which they are read; none for own code alone."""
    return [part.name for part in parts_of(source)] if source.path else []


def parts_of(source: Source) -> tuple[Part, ...]:
    """The files of a source, in the order in which they are read.

    Raises:
        UserError: there is nothing under this name; says what was looked for.
    """
    if is_address(source.path) or is_on_hub(source.path, source.hub):
        return _far_parts(source.path, source.hub, source.revision, source.subset, source.split, source.folder)
    return _near_parts(source.path)


def is_on_hub(path: str, hub: str = "auto") -> bool:
    """Whether a path means a data set on a hub: it is written so, or the hub is named, and nothing of that name lies here."""
    return (is_hub_id(path) or hub != "auto") and not os.path.exists(path)


@cache
def _far_parts(
    path: str, hub: str, revision: str | None, subset: str | None, split: str | None, folder: str | None
) -> tuple[Part, ...]:
    """Files at an address or on a hub, which is asked once in a process."""
    if is_address(path):
        from luthier.data.remote import address_parts

        return address_parts(path)
    from luthier.data.remote_hub import hub_parts

    return hub_parts(path, hub, revision=revision, subset=subset, split=split, folder=folder)


def _near_parts(path: str) -> tuple[Part, ...]:
    file = Path(path)
    if file.is_dir():
        return _all_of(file)
    if _MAGIC.search(path) and not file.exists():
        found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
        if not found:
            raise UserError("no file fits this pattern", where=shown(file))
        return tuple(local_part(name) for name in found)
    return (local_part(file),)


def _all_of(folder: Path) -> tuple[Part, ...]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and is_data(file.relative_to(folder).as_posix()))
    if not files:
        raise UserError(
            "there is no data file in this folder", where=shown(folder), hint="Data files end in .json, .jsonl, .csv …"
        )
    return tuple(local_part(file) for file in files)


def _count_lines(path: Path) -> int:
    with open_bytes(path) as file:
        if file.peek(4)[:4] == b"PAR1":
            return 1
        return max(1, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")))


def headless(source: Source) -> bool:
    """Whether its csv files have no header: their columns are named by number."""
    return bool(source.columns) and all(name.isdecimal() for name in source.columns.values())


def _file_rows(source: Source, on_the_way: bool) -> Iterator[Row]:
    for part in parts_of(source):
        yield from read_rows(part.file(on_the_way=on_the_way), documents=source.documents, headless=headless(source))
