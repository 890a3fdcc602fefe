"""Lines of a run survive kills and full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.runs.jsonl import JsonLines, read

RECORDS = [{"step": 1, "loss": 2.5}, {"step": 2, "text": "你好\u2028\n"}, {"step": 3, "text": "x" * 70_000}]


def write(path: Path, records: list[dict]) -> None:
    lines = JsonLines(path)
    for record in records:
        lines.append(record)
    lines.close()


def test_what_is_written_is_read_with_a_running_number(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, RECORDS)
    write(path, RECORDS)
    records, offset = read(path)
    assert [record.pop("seq") for record in records] == list(range(6))
    assert records == RECORDS * 2
    assert offset == path.stat().st_size


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_file_cut_anywhere_is_read_up_to_the_tear_and_mended_by_the_next_writer(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.jsonl"
    write(path, [{"step": step, "loss": step / 2} for step in range(8)])
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    before, offset = read(path)
    write(path, [{"step": 99}])
    after, _ = read(path)
    assert [record["seq"] for record in after] == list(range(len(after)))
    assert after[: len(before)] == before
    assert after[-1]["step"] == 99
    assert read(path, offset)[0] == after[len(before) :]  # a follower's cursor stays good across the tear


def test_a_whole_record_without_its_line_feed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, RECORDS)
    path.write_bytes(path.read_bytes()[:-1])
    write(path, [{"step": 4}])
    assert [record["step"] for record in read(path)[0]] == [1, 2, 3, 4]


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, [{"loss": float("nan"), "more": [float("inf"), 1.0]}])
    assert json.loads(path.read_text()) == {"seq": 0, "loss": None, "more": [None, 1.0]}


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    real, calls = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            lines.append({"step": 2})
    lines.append({"step": 3})
    lines.close()
    assert [(record["seq"], record["step"]) for record in read(path)[0]] == [(0, 1), (1, 3)]


def test_a_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl", 7) == ([], 7)
