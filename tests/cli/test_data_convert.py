"""`luthier data convert` as people type it, and `luthier data cache`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.app import run
from tests.workspace import Workspace

ROWS = [
    {"instruction": "Who are you?", "output": "I am {{name}} of <AUTHOR>.", "topic": "self"},
    {"instruction": "你是谁？", "output": "我是尖米，尖米的助手。", "topic": "self"},
    {"instruction": "How many strings?", "output": "Four.", "topic": "violin"},
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    Path("rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), "utf-8")
    return tmp_path


def test_from_alpaca_to_xtuner_with_names_filled_in(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "convert", "rows.jsonl", "out.json", "--to", "xtuner", "--where", 'topic == "self"', "--keep", "topic"]
    assert run([*command, "--set", "name=黄大力", "--set", "author=琴匠", "--replace", "尖米=小琴"]) == 0
    assert capsys.readouterr().out == "out.json: 2 rows as `xtuner`, from `alpaca`\n"
    rows = json.loads(Path("out.json").read_text("utf-8"))
    assert [row["conversation"][0]["output"] for row in rows] == ["I am 黄大力 of 琴匠.", "我是小琴，小琴的助手。"]
    assert [row["topic"] for row in rows] == ["self", "self"]


def test_two_tables_of_a_course_become_conversations(shared: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = shared / "data/medical/cmedqa_layout"
    command = [
        "data",
        "convert",
        str(layout / "questions.csv"),
        str(layout / "answers.csv"),
        "medical.jsonl",
        "--join",
        "question_id",
    ]
    command += ["--columns", "instruction=questions.content", "--columns", "output=answers.content", "--keep", "question_id"]
    assert run([*command, "--limit", "50"]) == 0
    assert capsys.readouterr().out.startswith("medical.jsonl: 50 rows as `messages`, from `alpaca`\n")
    first = json.loads(Path("medical.jsonl").read_text("utf-8").partition("\n")[0])
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"]
    assert first["question_id"]
    assert run(["data", "check", "medical.jsonl"]) in (0, 1)
    assert "medical.jsonl: 50 rows as `messages`" in capsys.readouterr().out
    assert run(["data", "add", "medical", "medical.jsonl", "--licence", "own"]) == 0
    Path("course.yaml").write_text("model: tiny\ndata: {train: [{name: medical}], max_length: 512}\ntrain: {max_steps: 1}\n")
    assert run(["data", "stats", "course.yaml"]) == 0
    assert "data: 50 examples" in capsys.readouterr().out
    assert run(["train", "course.yaml", "--quiet", "--name", "course"]) == 0
    assert list(Path("runs/course/final").glob("*.safetensors"))


def test_parquet_is_written_and_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("messages", "alpaca", "sharegpt"):
        assert run(["data", "convert", "rows.jsonl", f"{target}.parquet", "--to", target, "--keep", "topic"]) == 0
        assert run(["data", "convert", f"{target}.parquet", f"{target}.jsonl", "--to", "alpaca", "--keep", "topic"]) == 0
        assert "lost" not in capsys.readouterr().out
        back = [json.loads(line) for line in Path(f"{target}.jsonl").read_text("utf-8").splitlines()]
        assert [(row["instruction"], row["output"], row["topic"]) for row in back] == [tuple(row.values()) for row in ROWS]
    assert run(["data", "convert", "rows.jsonl", "rows.parquet.gz"]) == 2
    assert "(all but parquet also .gz)" in capsys.readouterr().err


def test_without_its_columns_named_a_join_says_what_there_is(
    shared: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = shared / "data/medical/cmedqa_layout"
    assert (
        run(["data", "convert", str(layout / "questions.csv"), str(layout / "answers.csv"), "m.jsonl", "--join", "question_id"])
        == 2
    )
    assert "`questions.content`, `ans_id`, `answers.content`" in capsys.readouterr().err
    assert not Path("m.jsonl").exists()


def test_bad_rows_end_it_or_are_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": 3, "output": "x"}\nbroken\n')
    assert run(["data", "convert", "rows.jsonl", "out.jsonl"]) == 2
    assert "2 bad rows" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
    assert run(["data", "convert", "rows.jsonl", "out.jsonl", "--skip"]) == 0
    out = capsys.readouterr().out
    assert "out.jsonl: 3 rows as `messages`" in out
    assert "bad rows left out: 2\n    rows.jsonl:4: `instruction` is a number" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rows.jsonl"], "error: IN... OUT: what is read and what is written are both needed. Name two files at least."),
        (["rows.jsonl", "rows.jsonl"], "error: rows.jsonl: would replace the data that is read. Choose another name."),
        (["rows.jsonl", "out.doc"], "error: out.doc: does not say how to write it. End it in .jsonl, "),
        (["rows.jsonl", "o.json", "--to", "alpcaa"], "error: --to: there is no format `alpcaa`. Did you mean `alpaca`?"),
        (["rows.jsonl", "o.json", "--to", "moss"], "error: --to: format `moss` is only read. Choose messages, sharegpt or alpaca."),
        (["rows.jsonl", "o.json", "--limit", "1", "--sample", "1"], "error: --limit and --sample: contradict each other. "),
        (["rows.jsonl", "o.json", "--join", "id"], "error: --join: needs two files at least. Write it as `questions.csv "),
        (["rows.jsonl", "o.json", "--set", "name"], "error: --set: cannot be read: `name`. Write it as --set name=text."),
        (["rows.jsonl", "o.json", "--where", "topic =="], "error: --where 'topic ==': cannot be read: invalid syntax"),
        (["rows.jsonl", "o.json", "--strict"], "error: rows.jsonl:1: would lose the column `topic` (see --keep). "),
        (["absent.jsonl", "o.json"], "error: absent.jsonl: no such file"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert run(["data", "convert", *arguments]) == 2
    assert capsys.readouterr().err.strip().startswith(said)
    assert sorted(path.name for path in place.iterdir() if path.is_file()) == ["rows.jsonl"]


def test_the_cache_is_listed_and_cleared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "cache", "list"]) == 0
    assert capsys.readouterr().out == f"0 stores, 0 B, in {place / 'cache' / 'stores'}\n"
    Workspace.make(place / "space")
    assert run(["data", "stats", "space/recipe.yaml"]) == 0
    capsys.readouterr()
    assert run(["data", "cache", "list", "--json"]) == 0
    [store] = json.loads(capsys.readouterr().out)
    assert store["tokens"] > 0
    assert store["sources"] == ["space/rows.json"]
    assert run(["data", "cache", "clear", "--older-than", "1"]) == 0
    assert "removed 0 stores, 0 B\nkept 1: " in capsys.readouterr().out
    assert run(["data", "cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 store, ")
    assert run(["data", "cache", "list"]) == 0
    assert capsys.readouterr().out.startswith("0 stores")


def test_a_store_that_a_run_needs_stays(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.data.store_cache import cache_stores

    Workspace.make(place / "space")
    run(["data", "stats", "space/recipe.yaml"])
    [store] = cache_stores()
    (store.folder / "runs").mkdir(exist_ok=True)
    (store.folder / "runs" / "1.json").write_text(json.dumps({"run": str(place)}))
    capsys.readouterr()
    assert run(["data", "cache", "clear"]) == 0
    assert "kept 1, " in capsys.readouterr().out
    assert run(["data", "cache", "list"]) == 0
    assert f"needed by {place}" in capsys.readouterr().out
