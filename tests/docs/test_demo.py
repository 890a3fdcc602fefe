"""`make demo` as a stranger sees it: each step explained in both languages, the answers printed and kept, and every name in it right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes/tiny/demo.sh"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def test_each_step_is_explained_in_both_languages():
    steps = re.findall(r'^say ((?:"[^"\n]*"(?: \\\n\s*)?)+)', SCRIPT.read_text("utf-8"), re.MULTILINE)
    for step in steps:
        heading, *lines = re.findall(r'"([^"\n]*)"', step)
        assert CHINESE.search(heading)
        assert sum(bool(CHINESE.search(line)) for line in lines) * 2 == len(lines), heading
    assert len(steps) == 5


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A checkout with the demo in it, run once; the folder and what was printed."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    program = folder / ".venv/bin/luthier"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m luthier "$@"\n', "utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "recipes/tiny/demo.sh"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_the_demo_prints_and_keeps_the_answers(demo):
    folder, printed = demo
    kept = (folder / "runs/demo/before-and-after.txt").read_text("utf-8")
    assert kept.strip() in printed
    answers = re.findall(r"^prompt: (.*)\nbase:   (.*)\ntuned:  (.*)$", kept, re.MULTILINE)
    new = [tuned for question, base, tuned in answers if question in ("你是谁？", "Who are you?") and tuned != base]
    assert any("黄大力" in answer for answer in new)
    assert any("Huang Dali" in answer for answer in new)
    assert any(base == tuned for _, base, tuned in answers), "something that was known before is still known"


@pytest.mark.slow
def test_what_the_demo_names_is_there(demo):
    folder, printed = demo
    named = set(re.findall(r"(?:runs|docs|recipes)/[\w/.-]+\w", printed)) - {"runs/demo"}
    assert {"runs/demo/before-and-after.txt", "runs/demo/loss.png", "runs/demo/final"} <= named
    for name in named:
        assert (folder / name).exists() or (ROOT / name).exists(), name
