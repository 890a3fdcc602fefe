"""A store gives back what was written, refuses what it cannot trust, and is whole or absent whatever kills its builder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from luthier.data import store_cache
from luthier.data.store import COLUMNS, FORMAT_VERSION, Header, Segment, SourceInfo, StoreWriter, TokenStore
from luthier.data.store_cache import cache_stores, clean_stores, content_digest, is_cached, key_of, open_or_build
from luthier.errors import UserError

SEGMENTS = [
    Segment(np.array([5, 6, 7], np.int32), np.array([0, 0.5, 1], np.float16), 0, 0, 0, 12),
    Segment(np.array([8], np.int32), np.array([0], np.float16), 0, 0, 0, 12, label=1),
    Segment(np.array([9, 1 << 20], np.int32), np.array([0, 2], np.float16), 1, 1, 1, 70_000, label=0),
]


def header(writer: StoreWriter, key: str = "abc") -> Header:
    sources = (SourceInfo("a.json", "train", 0, 1), SourceInfo("b.json", "validation", 1, 1))
    return Header(key, "sft", "chatml", 8, writer.segments, writer.tokens, sources, {"rows": 2}, {"markers": 3})


def fill(writer: StoreWriter) -> Header:
    writer.write(SEGMENTS[:2])
    writer.write([])
    writer.write(SEGMENTS[2:])
    return header(writer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with StoreWriter(tmp_path / "store") as writer:
        writer.close(fill(writer))
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def test_what_was_written_is_read(folder: Path) -> None:
    store = TokenStore.open(folder)
    assert len(store) == 3
    assert store.lengths.tolist() == [3, 1, 2]
    assert store.supervised.tolist() == [2, 0, 1]
    for index, segment in enumerate(SEGMENTS):
        tokens, weight = store.segment(index)
        assert tokens.tolist() == segment.tokens.tolist()
        assert weight.tolist() == segment.weight.tolist()
        for name in ("example", "source", "group", "line", "label"):
            assert getattr(store, name)[index] == getattr(segment, name)
    assert [store.origin(index) for index in range(3)] == ["a.json:12", "a.json:12", "b.json:70000"]
    assert {name: getattr(store, name).dtype.str for name in COLUMNS} == COLUMNS
    assert not store.tokens.flags.writeable
    assert (store.key, store.header.rungs, store.header.sources[1].split) == ("abc", {"markers": 3}, "validation")


def test_another_version_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(raw | {"version": FORMAT_VERSION + 1, "new": 1}))
    with pytest.raises(UserError, match=f"version {FORMAT_VERSION + 1}"):
        TokenStore.open(folder)


def test_a_torn_column_is_refused(folder: Path) -> None:
    os.truncate(folder / "weight.bin", 10)
    with pytest.raises(UserError, match="`weight` has 10 bytes instead of 12"):
        TokenStore.open(folder)


def test_without_header_it_is_no_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store") as writer:
        writer.write(SEGMENTS)
    with pytest.raises(UserError, match="not a token store"):
        TokenStore.open(tmp_path / "store")


def test_the_header_must_count_what_was_written(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store") as writer:
        early = header(writer)
        writer.write(SEGMENTS)
        with pytest.raises(ValueError, match="count"):
            writer.close(early)


def never(_: StoreWriter) -> Header:
    raise AssertionError("built twice")


def test_a_store_is_built_once() -> None:
    first, was_there = open_or_build("abc", fill, None)
    again, is_there = open_or_build("abc", never, None)
    assert (was_there, is_there) == (False, True)
    assert again.tokens.tolist() == first.tokens.tolist()


@pytest.mark.parametrize(
    "damage", [lambda columns: os.truncate(columns / "tokens.bin", 3), lambda columns: (columns / "header.json").unlink()]
)
def test_a_damaged_store_is_built_anew(damage: Callable[[Path], None]) -> None:
    store, _ = open_or_build("abc", fill, None)
    wanted = store.tokens.tolist()
    damage(store.folder)
    assert not is_cached("abc")
    again, was_there = open_or_build("abc", fill, None)
    assert not was_there
    assert again.tokens.tolist() == wanted


@pytest.mark.parametrize("point", ["store.mid-write", "store.mid-write:2", "store.before-rename"])
def test_a_killed_builder_leaves_nothing_that_the_next_cannot_replace(root: Path, point: str) -> None:
    script = f"import runpy; test = runpy.run_path({__file__!r}); test['open_or_build']('abc', test['fill'], None)"
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "LUTHIER_FAULT": point}, check=False)
    assert ended.returncode == -signal.SIGKILL
    home = store_cache.stores_home() / "abc"
    assert list(home.glob(".tmp-*")), "it died while building"
    assert not is_cached("abc")
    store, _ = open_or_build("abc", fill, None)
    assert len(store) == 3
    assert not list(home.glob(".tmp-*"))


def test_of_two_at_once_one_builds() -> None:
    built = []

    def slowly(writer: StoreWriter) -> Header:
        built.append(writer)
        time.sleep(0.2)
        return fill(writer)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: open_or_build("abc", slowly, None)[1], range(2)))
    assert sorted(found) == [False, True]
    assert len(built) == 1


def test_a_full_disk_is_told_and_leaves_no_rubbish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.faults._reached", {})
    monkeypatch.setenv("LUTHIER_FAULT", "store.mid-write:1:ENOSPC")
    with pytest.raises(OSError, match=r"No space left.*stores/abc"):
        open_or_build("abc", fill, None)
    assert not list((store_cache.stores_home() / "abc").iterdir())
    assert len(open_or_build("abc", fill, None)[0]) == 3


def test_cleaning_takes_only_what_no_run_holds(tmp_path: Path) -> None:
    held, free = tmp_path / "runs/held", tmp_path / "runs/free"
    for run in (held, free):
        run.mkdir(parents=True)
    open_or_build("aaa", fill, held)
    open_or_build("bbb", fill, free)
    open_or_build("bbb", never, held)
    open_or_build("ccc", fill, None)
    assert {store.key: len(store.runs) for store in cache_stores()} == {"aaa": 1, "bbb": 2, "ccc": 0}
    assert all(store.bytes > 0 for store in cache_stores())
    assert clean_stores() == [], "all were used just now"
    assert [store.key for store in clean_stores(unused_for=0)] == ["ccc"]
    held.rmdir()
    assert [store.key for store in clean_stores(unused_for=0)] == ["aaa"]
    free.rmdir()
    assert [store.key for store in clean_stores(unused_for=0)] == ["bbb"]
    assert cache_stores() == []


def test_cleaning_leaves_a_store_that_is_being_asked_for() -> None:
    open_or_build("aaa", fill, None)
    with store_cache.lock(store_cache.stores_home() / "locks/aaa"):
        assert clean_stores(unused_for=0) == []
    assert is_cached("aaa")


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    file.write_text("[1]")
    before = time.time() - 100
    os.utime(file, (before, before))
    reads: list[Path] = []
    real = store_cache.file_sha256
    monkeypatch.setattr(store_cache, "file_sha256", lambda path: reads.append(path) or real(path))
    first = content_digest(file)
    assert content_digest(file) == first
    assert len(reads) == 1
    file.write_text("[2]")
    assert content_digest(file) != first
    fresh = content_digest(file)
    assert len(reads) == 3, "a file that was changed a moment ago may change again unseen"
    assert fresh == content_digest(file)
    with pytest.raises(UserError, match="no such file"):
        content_digest(tmp_path / "absent.json")


def test_keys_depend_on_every_part() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert len({key_of({"a": value}) for value in (1, "1", [1], None, 1.5)}) == 5
