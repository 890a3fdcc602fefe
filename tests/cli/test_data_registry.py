"""`luthier data list`, `show`, `add`, `formats`, and a run that names its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from luthier.cli.app import run
from luthier.data.formats import FORMATS
from tests.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Workspace.make(tmp_path)


def test_what_was_added_is_listed_shown_and_prepared(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    Path("shop.csv").write_text("ask,reply\n" + "".join(f"question {i},answer {i}\n" for i in range(20)))
    words = ["data", "add", "shop", "shop.csv", "--columns", "question=ask", "--columns", "answer=reply", "--licence", "own"]
    assert run(words) == 0
    assert "datasets.yaml: `shop`, read as `qa`" in capsys.readouterr().out
    entry = yaml.safe_load(Path("datasets.yaml").read_text("utf-8"))["shop"]
    assert entry.pop("sha256")
    assert entry == {"path": "shop.csv", "format": "qa", "columns": {"question": "ask", "answer": "reply"}, "licence": "own"}
    assert run(["data", "list"]) == 0
    assert "shop" in capsys.readouterr().out
    assert run(["data", "show", "shop", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "licence: own" in shown
    assert json.loads(shown.splitlines()[-1])["messages"][0] == {"role": "user", "content": "question 0"}
    assert run(["data", "stats", "recipe.yaml", "data.train=[{name: shop}]"]) == 0
    assert "20 units" in capsys.readouterr().out
    Path("shop.csv").write_text("ask,reply\nchanged,x\n")
    assert run(["data", "stats", "recipe.yaml", "data.train=[{name: shop}]"]) == 2
    assert "shop.csv: has changed: its sha256 is" in capsys.readouterr().err


def test_placeholders_are_filled_in_a_run_and_make_another_store(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Who are you, {i}?", "output": "I am {{name}}, from OldShop."} for i in range(8)]
    Path("who.json").write_text(json.dumps(rows))
    command = ["data", "preview", "recipe.yaml", "data.train=who.json"]
    assert run(command) == 0
    assert "{{name}}" in capsys.readouterr().out
    assert run([*command, "data.variables={name: Luthier}", "data.replace={OldShop: Cremona}"]) == 0
    out = capsys.readouterr().out
    assert "I am Luthier, from Cremona." in out
    assert "{{name}}" not in out


def test_lists_can_be_narrowed_and_read_by_programs(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list", "--kind", "preference", "--language", "zh", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "dpo_mix_zh" in found
    assert all(entry["kind"] == "preference" and "zh" in entry["languages"] for entry in found.values())
    assert run(["data", "show", "dolly_15k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == "cc-by-sa-3.0"


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "formats"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FORMATS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "dolly_15"], "no data set `dolly_15` in the registry. Did you mean `dolly_15k`?"),
        (["add", "x", "none.json"], "none.json: no such file"),
        (["add", "x", "rows.json", "--as", "alpca"], "--as: "),
        (["add", "x", "owner/name", "--hub", "github"], "--hub: no such hub: `github`"),
        (["add", "x", "rows.json", "--as", "alpaca", "--columns", "instructoin=q"], "has no `instructoin`"),
    ],
)
def test_mistakes_are_one_line(space: Workspace, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not Path("datasets.yaml").exists()


def test_hub_ids_and_addresses_are_added_unread(space: Workspace) -> None:
    assert run(["data", "add", "far", "s3://bucket/a.jsonl", "--as", "messages"]) == 0
    assert run(["data", "add", "hubbed", "owner/name", "--hub", "modelscope"]) == 0
    assert yaml.safe_load(Path("datasets.yaml").read_text("utf-8")) == {
        "far": {"path": "s3://bucket/a.jsonl", "format": "messages", "licence": "unknown"},
        "hubbed": {"modelscope": "owner/name", "licence": "unknown"},
    }
