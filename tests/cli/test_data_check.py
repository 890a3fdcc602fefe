"""`luthier data check`: exit codes, the list and its limits, JSON, the report, the cleaned copy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier.cli.app import run
from luthier.data.doctor import KINDS, examine

GOOD = {"instruction": "How long does a rehair take?", "output": "About a week, more before concerts."}
EVIL = {
    "id": "<b>7</b>",
    "instruction": "Say <script>alert(1)</script> please, will you?",
    "output": "<img src=x onerror=alert(1)> {{name}}",
}
ROWS = [
    GOOD,
    {"instruction": "What is it made of?", "output": ""},
    EVIL,
    {"instruction": "And the back?", "output": "Maple\u200b too.", "kept": [1, {"a": None}]},
    GOOD,
    {"instruction": "Who?", "output": "Call 13912345678, or the café, or the cafÃ©."},
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), "utf-8")
    (tmp_path / "good.json").write_text(json.dumps([GOOD]), "utf-8")
    return path


def test_exit_codes(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "good.json"]) == 0
    assert capsys.readouterr().out.endswith("\nclean\n")
    assert run(["data", "check", "rows.jsonl"]) == 1
    assert run(["data", "check", "good.json", "absent.json"]) == 2
    said = capsys.readouterr()
    assert "error: absent.json: no such file" in said.err
    assert "good.json: 1 row as `alpaca`" in said.out


def test_warnings_alone_are_no_failure(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("phone.jsonl").write_text(json.dumps({**GOOD, "output": "Call 13912345678 tomorrow."}) + "\n", "utf-8")
    assert run(["data", "check", "phone.jsonl"]) == 0
    assert capsys.readouterr().out.endswith("\nclean, 1 warning\n")
    assert run(["data", "check", "rows.jsonl", "--ignore", "empty,placeholder,control,duplicate,mojibake"]) == 0


def test_problems_a_table_and_a_histogram(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["data", "check", "rows.jsonl"])
    out = capsys.readouterr().out
    assert out.startswith("rows.jsonl:2 (row 2): the answer is empty, in turn 2; fill it in, or take the row out\n")
    assert re.search(r"^empty +error +1 +a field is empty +2$", out, re.M)
    assert re.search(r"^duplicate +error +1 +the same as an earlier row +5$", out, re.M)
    assert re.search(r"^ *32–63 +█+ \d+$", out, re.M)
    assert "length in characters: shortest " in out
    run(["data", "check", "rows.jsonl", "--show", "0"])
    assert "rows.jsonl:2" not in capsys.readouterr().out


def test_json_holds_every_problem(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "rows.jsonl", "--json", "--show", "0"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert {problem["kind"] for problem in told["problems"]} == {
        "empty", "placeholder", "control", "duplicate", "mojibake", "phone",
    }  # fmt: skip
    assert told["problems"][0] == {
        "file": "rows.jsonl",
        "line": 2,
        "row": 2,
        "id": None,
        "kind": "empty",
        "level": "error",
        "what": "the answer is empty",
        "where": "turn 2",
        "advice": KINDS["empty"].advice,
    }
    assert told["summary"]["rows"] == 6
    assert told["summary"]["kinds"]["duplicate"]["rows"] == 1


def test_the_report_is_self_contained_and_nothing_in_the_data_is_code(rows: Path) -> None:
    run(["data", "check", "rows.jsonl", "--html", "report.html"])
    page = Path("report.html").read_text("utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"<[^>]*(?:src|href)=|url\(|@import", page)
    assert page.count("<svg") == 3
    assert "the answer is empty" in page
    assert "&lt;U+200B&gt;" in page
    assert "\u200b" not in page
    assert "13912345678" not in page


def test_the_cleaned_copy_is_clean_and_says_what_was_changed(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "rows.jsonl", "--fix", "clean.jsonl"]) == 1
    out = capsys.readouterr().out
    assert "clean.jsonl: 4 rows written" in out
    assert "left out: 1 row · empty" in out
    assert "left out: 1 row · duplicate" in out
    assert "edited: 1 row · control" in out
    assert "edited: 1 row · mojibake" in out
    assert "still in it: 1 row · placeholder" in out
    written = [json.loads(line) for line in Path("clean.jsonl").read_text("utf-8").splitlines()]
    mended = [{**ROWS[3], "output": "Maple too."}, {**ROWS[5], "output": "Call 13912345678, or the café, or the café."}]
    assert written == [GOOD, EVIL, *mended]
    again = examine("clean.jsonl")
    assert {name for name in again.tallies if KINDS[name].mended != "kept"} == set()
    run(["data", "check", "rows.jsonl", "--fix", "less.json", "--drop", "phone,placeholder"])
    assert json.loads(Path("less.json").read_text("utf-8")) == [GOOD, mended[0]]


def test_what_no_one_can_mend_is_kept_and_said(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"instruction": "Where do you have your coffee?", "output": "In the cafÃ\u00a0© \ufffd there."}
    Path("lost.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    run(["data", "check", "lost.jsonl", "--fix", "out.jsonl"])
    assert "still in it: 1 row · lost-character" in capsys.readouterr().out
    assert json.loads(Path("out.jsonl").read_text("utf-8")) == row


def test_validation_data_is_not_copied(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["data", "check", "rows.jsonl", "--validation", "good.json", "--fix", "clean.csv", "--drop", "mojibake,control"]) == 1
    )
    assert "left out: 2 rows · leak" in capsys.readouterr().out
    assert Path("clean.csv").read_text("utf-8").splitlines()[0] == "id,instruction,output"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--as", "alpca"], "error: --as: there is no format `alpca`. Did you mean `alpaca`?"),
        (["--ignore", "duplicates"], "error: --ignore: there is no kind of problem `duplicates`. Did you mean `duplicate`?"),
        (["--columns", "question"], "error: --columns: cannot be read: `question`. Write it as --columns instruction=question."),
        (["--template", "qwen"], "error: --template: needs a model to count tokens with. Give --model too, e.g. --model tiny."),
        (["--fix", "rows.jsonl"], "error: --fix rows.jsonl: would replace the data that is read. Choose another name."),
        (["--fix", "good.json"], "error: --fix good.json: is there already. Choose another name, or give --force."),
        (["--fix", "a/out.json"], "error: --fix a/out.json: there is no folder `a`. Make it first."),
        (
            ["--fix", "out.xlsx"],
            "error: out.xlsx: does not say how to write it. "
            "End it in .jsonl, .json, .csv, .tsv, .txt, .parquet (all but parquet also .gz).",
        ),
        (["--drop", "phone"], "error: --drop: says what the cleaned copy leaves out, and none is written. Give --fix OUT."),
    ],
)
def test_mistakes_on_the_command_line(rows: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert run(["data", "check", "rows.jsonl", *arguments]) == 2
    assert capsys.readouterr().err.strip() == said


def test_tokens_of_a_model(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "good.json", "--model", "tiny", "--max-length", "8"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"good\.json:1 \(row 1\): has \d+ tokens, \d+ more than 8; shorten it, or raise --max-length", out)
    assert "length in tokens: " in out
    assert re.search(r"supervised: \d+\.\d% of \d+ tokens", out)
