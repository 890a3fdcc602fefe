"""`luthier models convert` writes a folder of today, and the old one again."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from luthier.cli.app import run


def test_there_and_back(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared / "fixtures" / "legacy" / "baichuan2_13b"
    native, back = tmp_path / "native", tmp_path / "back"
    assert run(["models", "convert", str(source), str(native)]) == 0
    assert run(["models", "convert", str(native), str(back), "--original-names"]) == 0
    assert capsys.readouterr().out == f"Written to {native}\nWritten to {back}\n"
    start, end = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert start.keys() == end.keys()
    assert all(start[key].equal(end[key]) for key in start)


def test_mistakes_are_one_line(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared / "fixtures" / "legacy" / "xverse"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, message in (
        ([str(source), str(tmp_path / "full")], "already there, and not empty"),
        (["tiny", str(tmp_path / "out"), "--original-names"], "does not come from an old checkpoint"),
        ([str(tmp_path), str(tmp_path / "out")], "not an old checkpoint that is known"),
        ([str(source), str(tmp_path / "out"), "--family", "xvers"], "Did you mean `xverse`"),
    ):
        assert run(["models", "convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
