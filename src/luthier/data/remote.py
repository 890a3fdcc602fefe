"""Files behind an address (`s3://`, `gs://`, `https://`, `memory://` …), through fsspec.

Where `data.streaming` is on, files are read where they lie (`far_file`), unless a copy is here already. Else a
file is fetched once into `$cache/downloads`, under a name made of its address and what the server says about its version (fsspec's
`ukey`: size, date, ETag), so a file that changed is fetched anew. Credentials are found where each protocol's own library looks for
them; `s3://` needs the package `s3fs`, `gs://` needs `gcsfs`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from luthier.data.far_file import FarFile
from luthier.data.parts import Part, has_data_suffix, is_data
from luthier.errors import UserError
from luthier.files import TEMPORARY, cache_home, lock


def address_parts(address: str) -> tuple[Part, ...]:
    """The files at an address: the file itself, those of a folder, or those that fit a pattern.

    Raises:
        UserError: the protocol is not known, its package is missing, or there is nothing there.
    """
    system, path = _system(address)
    try:
        names = sorted(system.glob(path)) if "*" in path else [path]
        found = [name for each in names for name in _files(system, each)]
        if not found:
            raise UserError("there is no data file at this address", where=address)
        return tuple(_part(system, name) for name in found)
    except FileNotFoundError as error:
        raise UserError("there is nothing at this address", where=address) from error
    except (OSError, ValueError, PermissionError) as error:
        raise UserError(f"cannot be reached ({_said(error)})", where=address) from error


def _system(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError("this kind of address needs a package that is not installed", where=address, hint=_said(error)) from error
    except ValueError as error:
        raise UserError(f"no such kind of address ({_said(error)})", where=address) from error


def _files(system: Any, path: str) -> list[str]:
    if not system.isdir(path) or has_data_suffix(path):
        return [path]
    inside = sorted(system.find(path))
    return [name for name in inside if is_data(name.removeprefix(path).lstrip("/"))]


def _part(system: Any, path: str) -> Part:
    address = system.unstrip_protocol(path)
    version = f"{address} {system.ukey(path)}"
    copy = cache_home() / "downloads" / sha256(version.encode()).hexdigest()[:32] / os.path.basename(path)

    def where_it_lies() -> io.RawIOBase:
        return io.FileIO(copy) if copy.is_file() else FarFile(address, lambda: system.open(path, "rb"))

    return Part(address, _fetcher(system, path, address, copy), version, tuple(Path(path).suffixes), where_it_lies)


def _fetcher(system: Any, path: str, address: str, file: Path) -> Callable[[], Path]:
    def fetch() -> Path:
        folder = file.parent
        with lock(folder.with_suffix(".lock")):
            if file.is_file():
                return file
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f"{TEMPORARY}{file.name}"
            try:
                system.get_file(path, str(temporary))
            except (OSError, ValueError) as error:
                raise UserError(f"the download failed ({_said(error)})", where=address, hint="Run it again.") from error
            temporary.replace(file)
        return file

    return fetch


def _said(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
