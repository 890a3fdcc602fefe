"""The folder that an export writes: built under a temporary name, and there under its own only when all of it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from luthier.errors import UserError
from luthier.files import is_disk_full, publish, temporary_sibling


@contextmanager
def new_folder(out: Path, *, within: str = ".") -> Iterator[Path]:
    """An empty folder to write into, which becomes `out` where nothing went wrong inside, and else is gone.

    Args:
        out: does not exist yet, or is empty.
        within: the part of the folder that becomes `out`; the rest is forgotten.

    Raises:
        UserError: it cannot be written.
    """
    out = out.absolute()
    temporary = temporary_sibling(out)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary / within, out)
    except (OSError, SafetensorError) as error:
        reason = "the disk is full" if is_disk_full(error) else getattr(error, "strerror", None) or error
        raise UserError(f"cannot write the folder: {reason}", where=str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
