"""Old checkpoints are converted once, into a cache that is keyed by what is in them.

```
$cache/native/<name>-<key>/     a native folder
$cache/native/locks/<key>       held while it is looked for or written
```

The key is a hash of the content of the weights, the config and the tokenizer's files, the family and the version of the converter, so a
copy never has to be invalidated. It is written under a temporary name and renamed when it is whole. Deleting it costs another
conversion, nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import UserError
from luthier.files import cache_home, is_disk_full, lock, publish, temporary_sibling
from luthier.models.legacy.family import Family
from luthier.models.legacy.registry import family_of

VERSION = 1
"""Raised whenever a converter writes something else than before."""


def native_home() -> Path:
    """The folder of all converted models."""
    return cache_home() / "native"


def native_folder(folder: Path) -> Path:
    """`folder` itself, or its converted copy where it holds an old checkpoint.

    Raises:
        UserError: an old checkpoint that cannot be converted, or no room for it.
    """
    family = family_of(folder)
    return folder if family is None else converted(folder, family)


def converted(folder: Path, family: Family) -> Path:
    """The native copy of an old checkpoint in the cache, made if need be.

    Raises:
        UserError: a broken checkpoint, or no room.
    """
    key = _key(folder, family)
    copy = native_home() / f"{folder.name}-{key}"
    with lock(native_home() / "locks" / key):
        # The same content under another folder's name is the same model.
        found = next((place for place in sorted(native_home().glob(f"*-{key}")) if (place / "config.json").is_file()), None)
        if found is None:
            if os.environ.get("RANK", "0") == "0":
                print(f"{folder} is an old checkpoint ({family.name}); converting it once into {copy}", file=sys.stderr)
            write_native(folder, family, copy)
    return found or copy


def write_native(folder: Path, family: Family, out: Path) -> None:
    """Write the native form of an old checkpoint to `out`, which must not exist: whole or not at all.

    Raises:
        UserError: a broken checkpoint, or no room.
    """
    from luthier.models.legacy.convert import to_native

    with _whole_or_nothing(out) as temporary:
        to_native(folder, family, temporary)


def write_original(folder: Path, out: Path, *, small_files: Path | None = None) -> None:
    """Write a converted model, or one trained from it, as the checkpoint that it comes from: whole or not at all.

    Args:
        folder: a native folder.
        out: must not exist.
        small_files: a converted folder to take the original's tokenizer files from, where `folder` has none.

    Raises:
        UserError: the model does not come from an old checkpoint, or no room.
    """
    from luthier.models.legacy.convert import to_original

    with _whole_or_nothing(out) as temporary:
        to_original(folder, temporary, small_files=small_files)


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes `out` when the block ends without an error.

    Raises:
        UserError: the disk is full.
    """
    temporary = temporary_sibling(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        publish(temporary, out)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError("cannot write the converted model: the disk is full", where=str(out), hint="Make room.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _key(folder: Path, family: Family) -> str:
    from luthier.data.store_cache import content_digest, key_of
    from luthier.models.legacy.convert import SMALL_FILES
    from luthier.models.legacy.weights import weight_files

    small = sorted({file for pattern in ("config.json", *SMALL_FILES) for file in folder.glob(pattern)})
    digests = {file.name: content_digest(file) for file in [*small, *weight_files(folder)]}
    return key_of({"files": digests, "family": family.name, "version": VERSION})[:16]
