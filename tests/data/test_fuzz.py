"""Whatever a file holds, the readers, the doctor and the converter end with an exit code: no traceback, no unbounded memory.

Random bytes, damaged copies of real files, random rows with the keys that formats know, and hostile nesting are tried for
`LUTHIER_FUZZ_SECONDS` in all (60 unless set; `make test-all` and `make fuzz` take ten minutes). Where atheris is installed, a third of
the time goes to inputs that are guided by the branches of the code they reach (`fuzz_guided.py`). Files of unusual size run in a process
of their own, whose peak of memory is measured.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from luthier.cli.app import run
from luthier.data.formats import FORMATS, READ_ONLY
from luthier.data.formats.turns import ROLES

pytestmark = pytest.mark.slow

BUDGET = float(os.environ.get("LUTHIER_FUZZ_SECONDS", "60"))
"""Seconds for all that is random, in this file."""
SUFFIXES = ("json", "jsonl", "csv", "tsv", "txt", "parquet", "json.gz", "jsonl.zst", "bin", "md")
ENDS = (0, 1, 2)
TARGETS = [name for name in FORMATS if name not in READ_ONLY]
GUIDED = Path(__file__).with_name("fuzz_guided.py")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def survive(name: str, data: bytes, *, format_name: str = "auto", target: str = "messages") -> None:
    """Check the file, mend it, report on it and convert it; each ends with an exit code, and what is mended can be read."""
    path = Path(name)
    path.write_bytes(data)
    try:
        assert (
            run(
                ["data", "check", name, "--as", format_name, "--show", "1", "--fix", "fixed.jsonl", "--html", "r.html", "--force"]
            )
            in ENDS
        )
        assert run(["data", "convert", name, "out.jsonl", "--as", format_name, "--to", target, "--skip", "--force"]) in ENDS
        for made in (Path("fixed.jsonl"), Path("out.jsonl")):
            if made.exists():
                for line in made.read_text("utf-8").split("\n")[:-1]:
                    json.loads(line)
                made.unlink()
    finally:
        path.unlink()


def for_seconds(share: float, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> int:
    """Try examples of a strategy for a share of the budget; how many rounds of 40 there were."""
    until, rounds = time.monotonic() + BUDGET * share, 0
    quiet = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    while rounds == 0 or time.monotonic() < until:
        seed(rounds)(quiet(given(strategy)(check)))()
        rounds += 1
    return rounds


HEADS = (
    b"",
    b"[",
    b"{",
    b'{"messages":[',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"a,b\n",
    b'"',
)


def test_random_bytes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = st.tuples(st.sampled_from(SUFFIXES), st.sampled_from(HEADS), st.binary(max_size=400))

    def check(drawn: tuple[str, bytes, bytes]) -> None:
        survive(f"f.{drawn[0]}", drawn[1] + drawn[2])
        survive(f"g.{drawn[0]}", gzip.compress(drawn[1] + drawn[2]))

    for_seconds(0.15, inputs, check)


def seeds(shared: Path) -> Iterator[tuple[str, bytes]]:
    """The beginnings of real files of all formats, packed ones unpacked."""
    for folder in (
        "formats/swift",
        "formats/torchtune",
        "formats/litgpt",
        "colossalchat",
        "llamafactory",
        "xtuner",
        "preference",
        "sft",
    ):
        for path in sorted((shared / "data" / folder).glob("*.*")):
            if path.suffix in (".json", ".jsonl", ".csv", ".txt"):
                yield path.suffix[1:], path.read_bytes()[:6000]
    yield "csv", (shared / "data/medical/zh_internal_medicine_200_gb18030.csv").read_bytes()[:6000]


@st.composite
def damaged(draw: st.DrawFn, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A file with some of its bytes cut out, doubled, or replaced."""
    suffix, data = draw(st.sampled_from(files))
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(0, max(len(changed) - 1, 0)))
        end = min(begin + draw(st.integers(0, 200)), len(changed))
        match draw(st.sampled_from(["cut", "double", "replace", "truncate"])):
            case "cut":
                del changed[begin:end]
            case "double":
                changed[begin:begin] = changed[begin:end]
            case "replace":
                changed[begin:end] = draw(
                    st.binary(max_size=8) | st.sampled_from([b"null", b"1e999", b'"', b"\\ud83d", b"{", b"[]", b"\n"])
                )
            case _:
                del changed[begin + 1 :]
    return suffix, bytes(changed)


def test_damaged_copies_of_real_files(place: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(drawn: tuple[str, bytes]) -> None:
        survive(f"f.{drawn[0]}", drawn[1], target=TARGETS[len(drawn[1]) % len(TARGETS)])

    for_seconds(0.25, damaged(list(seeds(shared))), check)


KEYS = sorted(
    {column for each in FORMATS.values() for column in each.COLUMNS}
    | {"from", "value", "role", "content", "tool_calls", "weight"}
)
words = st.sampled_from(
    [
        *ROLES,
        "",
        " ",
        "[]",
        "{}",
        '{"name": "f"}',
        "{{name}}",
        "\ufeff",
        "\u200b",
        "\x00",
        "xxx",
        "\ud83d",
        "[INST] q [/INST] a </s>",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=6)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=20
)
turns = st.lists(
    st.fixed_dictionaries({"role": words, "content": values}, optional={"tool_calls": values, "weight": scalars}), max_size=4
)
rows = st.dictionaries(st.sampled_from(KEYS), values | turns | turns.map(json.dumps), min_size=1, max_size=6) | values


def test_random_rows_with_the_keys_of_formats(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = st.tuples(
        st.lists(rows, min_size=1, max_size=5), st.sampled_from(["auto", *FORMATS]), st.sampled_from(TARGETS), st.booleans()
    )

    def check(drawn: tuple[list[Any], str, str, bool]) -> None:
        many, format_name, target, array = drawn
        text = json.dumps(many) if array else "".join(json.dumps(row) + "\n" for row in many)
        survive("f.json", text.encode(), format_name=format_name, target=target)

    for_seconds(0.25, inputs, check)


@pytest.mark.parametrize("depth", [30, 99, 101, 500, 900, 5_000, 300_000])
def test_hostile_nesting(place: Path, capsys: pytest.CaptureFixture[str], depth: int) -> None:
    lists, mappings = "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth
    replies = '{"role":"user","text":"a","replies":[' * depth + "]}" * depth
    history = "[[" * depth + "]]" * depth
    fitting = '{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}'
    for inner in (lists, mappings, replies, history):
        quoted = json.dumps(inner)
        for row in (
            inner,
            f'{{"messages": {inner}}}',
            f'{{"messages": [{fitting}], "tools": {quoted}, "extra": {inner}}}',
            f'{{"instruction": "q", "output": "a\\u200b", "history": {inner}}}',
            f'{{"instruction": "q", "output": "a\\u200b", "extra": {inner}}}',
            f'{{"conversations": {quoted}}}',
            f'{{"prompt": {replies}}}',
        ):
            survive("f.jsonl", (row + "\n").encode())
            survive("f.json", f"[{row}]".encode())
    table = "instruction,output,history\nq,a," + '"' + lists.replace('"', '""') + '"\n'
    survive("f.csv", table.encode())


MEASURED = """
import resource, sys
from pathlib import Path
from luthier.cli.app import run
code, status = run(sys.argv[1:]), Path("/proc/self/status")
if status.exists():  # what getrusage says begins with the size of the process that started this one
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
print("PEAK", peak // 1024, "CODE", code, file=sys.stderr)
"""


def measured(*arguments: str, limit: float = 900) -> tuple[int, int]:
    """The exit code of a command in a process of its own, and its peak of memory in MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=limit)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    peak, code = done.stderr.rpartition("PEAK ")[2].split()[::2]
    return int(code), int(peak)


MB = 1 << 20


@pytest.mark.parametrize("kind", ["text", "json", "ids", "broken", "spaces", "csv", "zip"])
def test_a_line_of_100_megabytes(place: Path, kind: str) -> None:
    long = 100 * MB
    made = {
        "text": ("f.txt", lambda: b"word " * (long // 5)),
        "json": ("f.jsonl", lambda: b'{"instruction": "q", "output": "' + b"word " * (long // 5) + b'"}\n'),
        "ids": (
            "f.jsonl",
            lambda: b'{"instruction": "q", "output": "a", "ids": [' + b"1234567890123456789," * (5 * MB) + b"1]}\n",
        ),
        "broken": ("f.json", lambda: b'[{"instruction": "q", "output": "' + b"word " * (long // 5)),
        "spaces": ("f.json", lambda: b" " * long),
        "csv": ("f.csv", lambda: b'instruction,output\nq,"' + b"word " * (long // 5) + b'"\n'),
        "zip": ("f.jsonl.gz", lambda: gzip.compress(b'{"instruction": "q", "output": "' + b"word " * (long // 5) + b'"}\n', 1)),
    }
    name, write = made[kind]
    Path(name).write_bytes(write())
    for arguments in (["check", name, "--fix", "fixed.jsonl"], ["convert", name, "out.jsonl"]):
        code, peak = measured("data", *arguments)
        assert code in ENDS
        assert peak < 3_000, f"{peak} MiB for a line of 100"


@pytest.mark.parametrize("kind", ["different", "bad", "csv"])
def test_a_million_tiny_rows(place: Path, kind: str) -> None:
    name = "f.csv" if kind == "csv" else "f.jsonl"
    row = {
        "different": '{{"instruction":"q{0}","output":"a"}}\n',
        "bad": '{{"instruction":{0},"output":"a"}}\n',
        "csv": "q{0},a\n",
    }[kind]
    with Path(name).open("w") as file:
        file.write("instruction,output\n" if kind == "csv" else "")
        file.writelines(row.format(number) for number in range(1_000_000))
    code, peak = measured("data", "check", name, "--show", "1", "--html", "r.html")
    assert code == (0 if kind in ("different", "csv") else 1)
    assert peak < 900, f"{peak} MiB"
    code, peak = measured("data", "convert", name, "out.jsonl")
    assert code == (2 if kind == "bad" else 0)
    assert peak < 600, f"{peak} MiB"


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed; `make test-all` installs it where it can"
)
def test_inputs_guided_by_branches(place: Path, shared: Path) -> None:
    corpus = place / "corpus"
    corpus.mkdir()
    for number, (suffix, data) in enumerate(seeds(shared)):
        (corpus / f"{number}").write_bytes(bytes([SUFFIXES.index(suffix)]) + data[:1500])
    command = [
        sys.executable,
        str(GUIDED),
        str(corpus),
        f"-max_total_time={int(BUDGET * 0.35)}",
        "-timeout=60",
        "-rss_limit_mb=4096",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUDGET + 300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
