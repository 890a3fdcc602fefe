"""The cache of token stores: found by what they were made of, built once, and kept while a run needs them.

```
$cache/stores/<key>/columns/      the store
$cache/stores/<key>/runs/*.json   the runs that hold it
$cache/stores/locks/<key>         held while a store is looked for, built or removed
$cache/contents/*.json            digests of source files, by (size, mtime, inode)
```

The key is a hash of everything that decides what is in a store: the content of the files, the tokenizer, the template, the settings
and the versions of encoder and format. So a store never has to be invalidated; changed data has another key. It is built under a
temporary name and renamed when it is whole: whatever kills the builder, the next one starts over. A store that does not open (torn
by the disk, or of an older format) is built anew.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from luthier import faults
from luthier.data.store import Header, StoreWriter, TokenStore
from luthier.data.textfile import open_bytes
from luthier.errors import UserError
from luthier.files import Locked, cache_home, lock, publish, remove_leftovers, temporary_sibling, write_json
from luthier.files import sha256 as file_sha256

_SETTLED = 2_000_000_000
"""A file younger than this many nanoseconds may change again within one tick of its clock, so its digest is not kept."""
_A_DAY = 86_400.0


@dataclass(frozen=True)
class CachedStore:
    """A store in the cache.

    Args:
        key: its content address.
        folder: where it lies.
        bytes: its size on disk.
        used: when it was last asked for, seconds since the epoch.
        runs: folders of the runs that hold it and still exist.
    """

    key: str
    folder: Path
    bytes: int
    used: float
    runs: tuple[Path, ...]


def stores_home() -> Path:
    """The folder of all stores."""
    return cache_home() / "stores"


def key_of(parts: Mapping[str, Any]) -> str:
    """Content address of a store, from everything that decides what is in it."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size, time of change and inode.

    Raises:
        UserError: the file cannot be read.
    """
    with open_bytes(path):  # tells what is wrong with a path better than `stat`
        state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
    memo = cache_home() / "contents" / f"{sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"
    known = json.loads(memo.read_text(encoding="utf-8")) if memo.is_file() else {}
    if known.get("stamp") == stamp:
        return known["sha256"]
    digest = file_sha256(path)
    if time.time_ns() - state.st_mtime_ns > _SETTLED:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_json(memo, {"path": str(path.absolute()), "stamp": stamp, "sha256": digest})
    return digest


def open_or_build(key: str, build: Callable[[StoreWriter], Header], run: Path | None) -> tuple[TokenStore, bool]:
    """The store with this key, and whether it was there already.

    Args:
        key: its content address.
        build: fills the writer and gives the header; called only if the store is not there.
        run: folder of the run that will need the store for as long as it exists.

    Raises:
        UserError: what `build` raises.
        OSError: the store cannot be written; names the place.
    """
    folder = stores_home() / key
    with lock(stores_home() / "locks" / key):
        found = _open(folder / "columns")
        if found is None:
            _build(folder / "columns", build)
        store = found or TokenStore.open(folder / "columns")
        os.utime(folder)
        if run is not None:
            _hold(folder, run)
    return store, found is not None


def is_cached(key: str) -> bool:
    """Whether there is a store with this key that opens."""
    return _open(stores_home() / key / "columns") is not None


def cache_stores() -> list[CachedStore]:
    """All stores in the cache, the one used last first."""
    folders = [folder for folder in stores_home().glob("*") if (folder / "columns").is_dir()]
    return sorted((_describe(folder) for folder in folders), key=lambda store: -store.used)


def clean_stores(unused_for: float = _A_DAY) -> list[CachedStore]:
    """Remove the stores that no run holds and nobody asked for in the last `unused_for` seconds; return what was removed."""
    removed = []
    for store in cache_stores():
        try:
            with lock(stores_home() / "locks" / store.key, wait=False):
                now = _describe(store.folder)
                if not now.runs and time.time() - now.used >= unused_for:
                    shutil.rmtree(store.folder)
                    removed.append(now)
        except Locked:
            continue  # somebody is using it this moment
    return removed


def _open(columns: Path) -> TokenStore | None:
    try:
        return TokenStore.open(columns)
    except UserError:
        return None


def _build(columns: Path, build: Callable[[StoreWriter], Header]) -> None:
    """Make the store and put it in place; the caller holds the lock."""
    columns.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(columns.parent)
    temporary = temporary_sibling(columns)
    try:
        with StoreWriter(temporary) as writer:
            writer.close(build(writer))
        faults.point("store.before-rename")
        shutil.rmtree(columns, ignore_errors=True)  # only ever one that does not open
        publish(temporary, columns)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(columns.parent)) from error  # a full disk has no name
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hold(folder: Path, run: Path) -> None:
    """Note that a run needs the store."""
    path = str(run.absolute())
    note = folder / "runs" / f"{sha256(os.fsencode(path)).hexdigest()[:16]}.json"
    note.parent.mkdir(exist_ok=True)
    write_json(note, {"run": path})


def _describe(folder: Path) -> CachedStore:
    notes = [json.loads(note.read_text(encoding="utf-8")) for note in (folder / "runs").glob("*.json")]
    runs = tuple(path for path in (Path(note["run"]) for note in notes) if path.is_dir())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return CachedStore(folder.name, folder, size, folder.stat().st_mtime, runs)
