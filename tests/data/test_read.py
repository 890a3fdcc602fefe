"""Files of every layout and encoding become rows with the line they begin on; what is broken is told with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.problems import RowProblem
from luthier.data.read import read_rows
from luthier.data.textfile import Mark
from luthier.errors import UserError

ROWS = [{"instruction": f"question {i}", "input": "", "output": f"答案\n{i}"} for i in range(4)]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    """Rows with their lines."""
    found = list(read_rows(path))
    assert [origin.row for origin, _ in found] == list(range(len(found)))
    return [(origin.line, row) for origin, row in found]


def problems(path: Path) -> list[tuple[int, str]]:
    return [(line, row.message) for line, row in read(path) if isinstance(row, RowProblem)]


def error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    return str(caught.value)


def lines_of(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a"])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (lines_of(ROWS), [1, 2, 3, 4]),
        (lines_of(ROWS).replace("\n", "\r\n\r\n"), [1, 3, 5, 7]),
        (json.dumps(ROWS), [1, 1, 1, 1]),
        (json.dumps(ROWS, indent=2), [2, 7, 12, 17]),
        ("\n [\n" + ",\n".join(json.dumps(row) for row in ROWS) + "]\n\n", [3, 4, 5, 6]),
        ("\n\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 7, 13, 19]),
    ],
)
def test_json_is_told_apart_by_content(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    assert read(write(tmp_path, name, text)) == list(zip(lines, ROWS, strict=True))


def test_lists_of_messages_without_a_key(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert read(write(tmp_path, "one.json", json.dumps(talk, indent=1))) == [(2, talk)]
    assert read(write(tmp_path, "two.jsonl", lines_of([talk, talk]))) == [(1, talk), (2, talk)]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3).filter(str.isascii), inner, max_size=3),
    max_leaves=6,
)
tables = st.lists(st.dictionaries(st.sampled_from(["a", "b", "文"]), values, min_size=1, max_size=3), min_size=2, max_size=6)


@settings(max_examples=80, deadline=None)
@given(tables, st.sampled_from([None, 0, 1, 4]), st.booleans(), st.booleans(), st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_any_json_reads_back_with_the_line_it_begins_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii: bool, packed: bool, mark: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    array = json.dumps(rows, ensure_ascii=ascii, indent=indent)
    for text in (array, "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)):
        data = mark + text.encode()
        found = read(write(folder, "rows.json", gzip.compress(data, 1) if packed else data))
        assert [row for _, row in found] == rows
        for line, row in found:
            assert begins_on(text, line, row)


def begins_on(text: str, line: int, row: Any) -> bool:
    """Whether the text has this row at one of the brackets of the line."""
    start = sum(len(part) + 1 for part in text.split("\n")[: line - 1])
    places = [start + at for at, letter in enumerate(text.split("\n")[line - 1]) if letter == "{"]
    for place in places:
        try:
            if json.JSONDecoder().raw_decode(text, place)[0] == row:
                return True
        except ValueError:
            continue  # a bracket inside a string
    return False


@pytest.mark.parametrize("broken", range(2, 21))
def test_a_break_in_a_pretty_array_is_told_with_its_line(tmp_path: Path, broken: int) -> None:
    """Whatever line of the array is spoilt, the message names that line and what the parser says."""
    lines = json.dumps(ROWS, indent=2).split("\n")
    lines[broken - 1] = lines[broken - 1].replace('"', "'", 1).replace("{", "<").replace("}", ">")
    found = list(read_rows(write(tmp_path, "a.json", "\n".join(lines))))
    origin, row = found[-1]
    assert isinstance(row, RowProblem)
    assert (origin.line, row.fatal) == (broken, True)
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("\n".join(lines))
    assert caught.value.lineno == broken
    assert row.message.startswith("broken JSON: ")


def test_a_broken_line_is_one_bad_row(tmp_path: Path) -> None:
    lines = lines_of(ROWS * 3).split("\n")
    lines[6] = lines[6][:-2]
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    assert len(read(path)) == 12
    [(line, message)] = problems(path)
    assert line == 7
    assert message == "broken JSON: Unterminated string starting at (column 54)"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('[{"a":1}\n{"a":2}]', 2, "Expecting ',' delimiter"),
        ('[{"a":1},\n{"a":2}', 2, "the array is not closed"),
        ('[{"a":1},\n]', 2, "Expecting value"),
        ('[{"a":1},\n{"a":2}]\n\n]', 4, "text after the end"),
        ('{"a":1\n{"a":2}', 1, "Expecting ',' delimiter"),
        ('{"a":1},\n{"a":2}', 1, "Extra data"),
        ("hello\n", 1, "Expecting value"),
        ('{"a": ' + "9" * 5000 + '}\n{"a":2}', 1, "thousands of digits"),
        ('{"a":"\\ud83d"}\n{"a":"\\ud83d\\ude00"}', 1, "surrogate"),
        ('[{"a":"x"},\n{"a":"\\uDE00"}]', 2, "surrogate"),
        ('{"a":2}\n{"a":' + "[" * 200_000, 2, "nested too deeply"),
        ('[{"a":2},\n' + "[" * 200_000, 2, "nested too deeply"),
    ],
)
def test_what_is_no_json(tmp_path: Path, text: str, line: int, said: str) -> None:
    [(where, message)] = problems(write(tmp_path, "a.json", text))
    assert where == line
    assert said in message


def test_line_ends_inside_strings_do_not_end_lines(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u2029c\x85d\x0be"}, {"text": "x"}]
    assert read(write(tmp_path, "u.jsonl", lines_of(rows))) == [(1, rows[0]), (2, rows[1])]


def test_csv_with_quoted_line_ends(tmp_path: Path) -> None:
    text = '\ufeffask,answer\r\n"one, ""two""\r\nthree",four\r\n\r\nfive,\r\n'
    assert read(write(tmp_path, "a.csv", text)) == [
        (2, {"ask": 'one, "two"\nthree', "answer": "four"}),
        (5, {"ask": "five", "answer": ""}),
    ]
    assert read(write(tmp_path, "b.csv", "a;b\n1;2\n")) == [(2, {"a": "1", "b": "2"})]
    assert read(write(tmp_path, "c.tsv", 'a\tb\n1,5\t"2"\n')) == [(2, {"a": "1,5", "b": "2"})]


@pytest.mark.parametrize("rest", ["1,2\n3,4\n", '1,2\n3,"4"\n5,6\n'])
def test_a_csv_row_that_swallows_the_lines_below_it_ends_the_reading(tmp_path: Path, rest: str) -> None:
    rows = list(read_rows(write(tmp_path, "a.csv", f'a,b\n1,2\n3,"open\n{rest}')))
    assert [(origin.line, getattr(row, "fatal", None)) for origin, row in rows] == [(2, None), (3, True)]


def test_a_csv_header_that_breaks_off_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b"\ninstruction\routput\nq,a\n")
    with pytest.raises(UserError, match=r"f\.csv:2: broken csv"):
        list(read_rows(path))


def test_csv_problems(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'a,b\n1,2\n3\n"x"y,4\n5,6,7\n8,9\n"open,\n1,2\n')
    assert [line for line, _ in problems(path)] == [3, 4, 5, 7]
    assert (6, {"a": "8", "b": "9"}) in read(path)
    assert error(write(tmp_path, "b.csv", "a,a\n1,2\n")).endswith(":1: column `a` is there twice")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1)] * 2), min_size=1
    )
)
def test_any_csv_reads_back(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["a", "b"])
    writer.writerows(cells)
    path = write(tmp_path_factory.getbasetemp(), "rows.csv", out.getvalue())
    assert [(row["a"], row["b"]) for _, row in read(path)] == cells


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    rows = [{"instruction": str(i), "history": [["a", "b"]] * (i % 2)} for i in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path) == [(i + 1, row) for i, row in enumerate(rows)]
    assert read(write(tmp_path, "a.parquet.gz", gzip.compress(path.read_bytes()))) == read(path)
    assert "is not a parquet file" in error(write(tmp_path, "b.parquet", "hello"))
    assert "cannot be read as parquet" in error(write(tmp_path, "c.parquet", path.read_bytes()[:-100]))


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\ntwo\n\n", [(1, "one"), (2, "two")]),
        ("\none\r\ntwo\r\n\r\n\r\nthree", [(2, "one\ntwo"), (6, "three")]),
        ("a\n\nb\n<|endoftext|>\nc\n<|endoftext|>\n", [(1, "a\n\nb"), (5, "c")]),
        ('{"a": 1}\n', [(1, '{"a": 1}')]),
    ],
)
def test_text_files(tmp_path: Path, text: str, documents: list[tuple[int, str]]) -> None:
    assert read(write(tmp_path, "a.txt", text)) == [(line, {"text": document}) for line, document in documents]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk"])
@pytest.mark.parametrize("layout", ["lines", "array", "csv"])
def test_encodings(tmp_path: Path, encoding: str, layout: str) -> None:
    rows = [{"ask": "plain", "answer": "ascii"}] * 3 + [{"ask": "请问今天天气怎么样？", "answer": "今天是晴天，适合出门。"}] * 3
    table = "ask,answer\n" + "".join(f"{row['ask']},{row['answer']}\n" for row in rows)
    text = {"lines": lines_of(rows), "array": json.dumps(rows, ensure_ascii=False), "csv": table}[layout]
    path = write(tmp_path, "a.csv" if layout == "csv" else "a.json", text.encode(encoding))
    assert [row for _, row in read(path)] == rows


def test_text_that_does_not_decode_is_told_with_its_line(tmp_path: Path) -> None:
    good = '{"text": "你好，今天天气很好，我们去公园吧"}\n'
    for encoding, bad, name in (("utf-8", b'{"text": "\xff"}\n', "UTF-8"), ("gb18030", b'{"text": "\xff\xff"}\n', "GB18030")):
        path = write(tmp_path, "a.jsonl", good.encode(encoding) * 2 + bad + good.encode(encoding) * 2)
        assert len(read(path)) == 5
        [(line, message)] = problems(path)
        assert (line, message) == (3, f"is not valid {name} text (byte 0xff)")
    array = b"[" + b",\n".join([good.encode("gb18030").strip()] * 3) + b',\n{"text": "\xff\xff"}]'
    assert error(write(tmp_path, "a.json", array)).endswith(":4: is not valid GB18030 text (byte 0xff). Save the file as UTF-8.")
    big5 = "這是一個用繁體中文寫成的句子，用來測試編碼偵測的功能是否正確。\n".encode("big5")
    assert "a.txt:1: is neither UTF-8 nor GB18030 text (it looks like big5)" in error(write(tmp_path, "a.txt", big5))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("e.json", b""),
        ("e.jsonl", b" \n\n"),
        ("e.json", b"[ ]"),
        ("e.csv", b"a,b\n"),
        ("e.txt", b"\n \n"),
        ("e.json.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_empty_files(tmp_path: Path, name: str, data: bytes) -> None:
    assert f"{name}: is empty" in error(write(tmp_path, name, data))


def test_files_that_are_not_there_or_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "alpaca.json", "[]")
    assert error(Path("alpaka.json")) == "alpaka.json: no such file. Did you mean `alpaca.json`?"
    assert error(Path("no/alpaca.json")) == "no/alpaca.json: no such file. There is no folder `no`."
    assert "is a folder" in error(tmp_path)
    assert "unknown kind" in error(write(tmp_path, "a.log", "x"))
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name, said in (("alpaca.json/x", "not a directory"), ("loop.json", "symbolic links"), ("x" * 300, "too long")):
        assert error(Path(name)).startswith(f"{name}: is no place of a file: ")
        assert said in error(Path(name))
    torn = write(tmp_path, "a.jsonl.gz", gzip.compress(lines_of(ROWS * 100).encode())[:-20])
    assert "the gzip data is damaged" in error(torn)


@pytest.mark.parametrize("name", ["big.jsonl", "big.csv", "big.txt"])
def test_lines_are_read_as_a_stream(tmp_path: Path, name: str) -> None:
    line = "x" * 1000
    row = {"big.jsonl": json.dumps({"text": line}), "big.csv": line, "big.txt": line}[name]
    path = write(tmp_path, name, (row + "\n") * 20_000)
    tracemalloc.start()
    for _ in islice(read_rows(path), 19_000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 < path.stat().st_size


def test_the_shared_files_have_the_rows_their_list_says(shared: Path) -> None:
    """Every json, jsonl, csv and one-a-line text file of the reference data, against its README."""
    import re

    table = (shared / "data/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| ([\w/.]+\.(?:json|jsonl|csv)(?:\.gz)?) \|[^|]*\| (\d+) \|", table, re.M)
    listed = [(name, int(rows)) for name, rows in listed if name not in ("chat_templates/conversations.json",)]
    assert len(listed) > 60
    for name, rows in listed:
        found = [row for _, row in read_rows(shared / "data" / name)]
        assert len(found) == rows, name
        assert not any(isinstance(row, RowProblem) for row in found), name


def _kinds(folder: Path) -> dict[str, Path]:
    """The same seven rows in every kind of file; the third holds the first character beyond ASCII."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": f"row {number}" + " 你好" * (number > 1)} for number in range(7)]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    files = {name: folder / f"rows.{name}" for name in ("jsonl", "jsonl.gz", "json", "csv", "txt", "parquet")}
    files |= {"gb18030": folder / "gb18030.jsonl", "utf-16": folder / "utf-16.jsonl", "bom": folder / "bom.jsonl"}
    files["jsonl"].write_text(lines, encoding="utf-8")
    files["jsonl.gz"].write_bytes(gzip.compress(lines.encode()))
    files["gb18030"].write_bytes(lines.encode("gb18030"))
    files["utf-16"].write_bytes(lines.encode("utf-16"))
    files["bom"].write_bytes(lines.encode("utf-8-sig"))
    files["json"].write_text(json.dumps(rows, indent=1), encoding="utf-8")
    files["csv"].write_text("text\n" + "\n".join(row["text"] for row in rows), encoding="utf-8")
    files["txt"].write_text("\n".join(row["text"] for row in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files["parquet"], row_group_size=3)
    return files


def test_reading_goes_on_from_any_mark(tmp_path: Path) -> None:
    for name, file in _kinds(tmp_path).items():
        whole = list(read_rows(file))
        assert len(whole) == 7, name
        for count in range(8):
            mark = Mark()
            begun = list(islice(read_rows(file, mark=mark), count))
            assert begun + list(read_rows(file, mark=replace(mark))) == whole, (name, count)


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_what_lies_before_a_mark_is_not_read(tmp_path: Path, name: str) -> None:
    file, mark = _kinds(tmp_path)[name], Mark()
    whole = list(read_rows(file))
    list(islice(read_rows(file, mark=mark), 4))
    content = bytearray(file.read_bytes())
    if name == "jsonl":
        second = content.index(b"\n\n") + 2
        content[content.index(b"\n", second) : mark.offset - 1] = b"x" * (mark.offset - 1 - content.index(b"\n", second))
    else:
        import pyarrow.parquet

        column = pyarrow.parquet.ParquetFile(file).metadata.row_group(0).column(0)
        begin = column.dictionary_page_offset or column.data_page_offset
        content[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)
    assert list(read_rows(file, mark=mark)) == whole[4:]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.jsonl", r"rows\.jsonl:2: is a line of more than 300 bytes\. Write one row a line\."),
        ("rows.json", r"rows\.json: is more than 300 bytes that would have to be in memory at once\. Write it as JSON lines"),
        ("rows.txt", r"rows\.txt:2: is a line of more than 300 bytes"),
    ],
)
def test_a_small_packed_file_cannot_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr("luthier.data.textfile.LARGEST", 300)
    text = (
        json.dumps([{"text": "a" * 200}, {"text": "b" * 200}], indent=1) if name == "rows.json" else '{"a": 1}\n' + "x" * 10_000
    )
    with pytest.raises(UserError, match=said):
        list(read_rows(write(tmp_path, name, gzip.compress(text.encode()))))
