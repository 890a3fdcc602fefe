"""The commands and the Python of the pages about serving, against a server that runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.serving.server import Options
from luthier.workshop import load_chat
from tests.repo.pages import blocks, commands
from tests.serving.conftest import Running, running

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/serving.md", ROOT / "README.md"]  # their Chinese twins show the same
LINES = sorted({line for page in PAGES for line in commands(page) if line.startswith("curl ")})
ADDRESS = "http://localhost:8000"


@pytest.fixture(scope="module")
def first() -> Iterator[Running]:
    with running(load_chat("tiny"), Options(name="first")) as server:
        yield server


def test_there_are_some() -> None:
    assert len(LINES) >= 8


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60])
def test_a_command_is_answered(first: Running, line: str) -> None:
    words = shlex.split(line.replace(ADDRESS, f"http://127.0.0.1:{first.port}"))
    if "--json" in words:  # younger than some curls
        place = words.index("--json")
        words[place : place + 1] = ["-H", "Content-Type: application/json", "-d"]
    done = subprocess.run([*words, "--fail-with-body", "--noproxy", "*"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    if "-sN" in words:
        assert done.stdout.endswith("data: [DONE]\n\n")
    elif "metrics" not in line:
        assert "error" not in json.loads(done.stdout)


def test_python_of_the_page_runs(first: Running, capsys: pytest.CaptureFixture[str]) -> None:
    block = blocks(PAGES[0], "python")[0]
    exec(compile(block.replace(ADDRESS, f"http://127.0.0.1:{first.port}"), "serving.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_table_names_the_fields_and_options_of_the_code() -> None:
    from luthier.serving.limits import Limits
    from luthier.serving.schema import ChatRequest

    for page in (ROOT / "docs/serving.md", ROOT / "docs/serving.zh.md"):
        text = page.read_text("utf-8")
        table = re.findall(r"^\| (`\w+`.*?) \|", text.split("\n## ")[2], re.MULTILINE)
        named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
        silent = {"model", "messages", "user", "modalities", "metadata", "store", "service_tier", "safety_identifier"}
        assert named == set(ChatRequest.model_fields) - silent - {"prompt_cache_key"}
        limits = Limits()
        for option, value in (("--slots", limits.slots), ("--waiting", limits.waiting), ("--max-tokens", limits.max_tokens)):
            assert re.search(rf"^\| `{option}` \| .*{value}", text, re.MULTILINE)
        for option, value in (("--time-limit", limits.seconds), ("--grace", limits.grace), ("--max-body", limits.body >> 20)):
            assert re.search(rf"^\| `{option}` \| .*{value:g}", text, re.MULTILINE)
