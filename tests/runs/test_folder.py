"""Runs are made once, found by name or folder, and refused with a choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.runs.folder import RunFolder, create_run, find_run, free_name, list_runs
from luthier.runs.writer import RunWriter


def made(output: Path, name: str, steps: int = 1) -> RunFolder:
    folder = create_run(output, name)
    with RunWriter(folder) as writer:
        for step in range(1, steps + 1):
            writer.metric(step, loss=1.0)
        writer.status("done" if steps else "failed")
    return folder


def test_an_existing_run_is_refused_with_the_choice(tmp_path: Path) -> None:
    made(tmp_path, "first")
    with pytest.raises(UserError, match=r"already there.*resume .*first.*--name"):
        create_run(tmp_path, "first")


def test_a_run_that_never_took_a_step_makes_room(tmp_path: Path) -> None:
    folder = made(tmp_path, "first", steps=0)
    folder.recipe.write_text("old")
    assert create_run(tmp_path, "first") == folder
    assert not folder.recipe.exists()
    with pytest.raises(UserError):  # … but only once: the folder belongs to the new run now
        create_run(tmp_path, "first")


def test_a_run_that_is_being_prepared_keeps_its_folder(tmp_path: Path) -> None:
    with RunWriter(create_run(tmp_path, "first")), pytest.raises(UserError, match="already there"):
        create_run(tmp_path, "first")


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("…")
    with pytest.raises(UserError):
        create_run(tmp_path, "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a\nb", ".hidden"])
def test_names_that_cannot_be_folders_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        create_run(tmp_path, name)


def test_a_chinese_name_is_a_name(tmp_path: Path) -> None:
    assert made(tmp_path, "第一次").name == "第一次"


def test_runs_are_found_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "runs", "first")
    monkeypatch.chdir(tmp_path)
    assert find_run("first").path.resolve() == folder.path
    assert find_run(folder.path) == folder
    monkeypatch.chdir(folder.path)
    assert find_run(".").name == "first"
    with pytest.raises(UserError, match=r"no run `frist`.*Did you mean `first`"):
        find_run("frist", tmp_path / "runs")
    with pytest.raises(UserError, match="no runs in"):
        find_run("first", tmp_path / "elsewhere")


def test_a_run_without_a_name_gets_the_next_number(tmp_path: Path) -> None:
    assert free_name(tmp_path / "runs", "identity") == "identity-1"
    for name in ("identity-1", "identity-2"):
        made(tmp_path, name)
    assert free_name(tmp_path, "identity") == "identity-3"
    made(tmp_path, "identity-3", steps=0)
    assert free_name(tmp_path, "identity") == "identity-3"  # a mistake in the data uses up no number
    with RunWriter(create_run(tmp_path, "identity-3")):
        assert free_name(tmp_path, "identity") == "identity-4"
    assert [folder.name for folder in list_runs(tmp_path)] == ["identity-1", "identity-2", "identity-3"]


def test_checkpoints_are_listed_by_step_without_unfinished_ones(tmp_path: Path) -> None:
    folder = made(tmp_path, "first")
    for name in ("step-001000", "step-000500", ".tmp-step-001500-77", "notes"):
        (folder.checkpoints_folder / name).mkdir(parents=True)
    assert list(folder.checkpoints()) == [500, 1000]
    assert folder.find_checkpoint(500) == folder.checkpoint(500)
    with pytest.raises(UserError, match=r"no checkpoint 3. It has: 500, 1000"):
        folder.find_checkpoint(3)
