"""`luthier data cache`: the token stores that are kept, what they weigh, and which runs need them."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from luthier.errors import UserError

cache_app = typer.Typer(help="Token stores that are kept on this machine.", no_args_is_help=True)
_A_DAY = 86_400.0


@cache_app.callback()
def cache() -> None:
    """Token stores that are kept on this machine."""


@cache_app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the token stores, the one used last first."""
    from luthier.data.store_cache import cache_stores, stores_home

    stores = cache_stores()
    if as_json:
        print(json.dumps([_entry(store) for store in stores], ensure_ascii=False, indent=2))
        return
    for store in stores:
        entry = _entry(store)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(store.used))
        print(
            f"{store.key}  {size(store.bytes):>9}  used {used}  {entry['tokens']:,} tokens of {', '.join(entry['sources']) or '?'}"
        )
        for run in store.runs:
            print(f"  needed by {run}")
    total = sum(store.bytes for store in stores)
    print(f"{len(stores)} {'store' if len(stores) == 1 else 'stores'}, {size(total)}, in {stores_home()}")


@cache_app.command()
def clear(
    older: Annotated[
        float, typer.Option("--older-than", metavar="DAYS", min=0, help="Only stores that nobody asked for in so many days.")
    ] = 0.0,
) -> None:
    """Remove the token stores that no run needs. What is removed is built again when it is asked for."""
    from luthier.data.store_cache import cache_stores, clean_stores

    removed = clean_stores(older * _A_DAY)
    freed = sum(store.bytes for store in removed)
    print(f"removed {len(removed)} {'store' if len(removed) == 1 else 'stores'}, {size(freed)}")
    left = cache_stores()
    if held := [store for store in left if store.runs]:
        print(f"kept {len(held)}, {size(sum(store.bytes for store in held))}: runs need them; they go when the runs are deleted")
    if others := len(left) - len(held):
        print(f"kept {others}: in use at the moment, or used in the last {older:g} days")


def size(count: int) -> str:
    """Bytes in words."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return ""


def _entry(store: Any) -> dict[str, Any]:
    """A store as JSON values; one that does not open has no tokens."""
    from luthier.data.store import TokenStore

    entry = {"key": store.key, "folder": str(store.folder), "bytes": store.bytes, "used": store.used}
    try:
        header = TokenStore.open(store.folder / "columns").header
    except UserError as error:
        return entry | {"runs": [str(run) for run in store.runs], "tokens": 0, "sources": [], "problem": str(error)}
    names = list(dict.fromkeys(source.file for source in header.sources))
    return entry | {"runs": [str(run) for run in store.runs], "tokens": header.tokens, "sources": names}
