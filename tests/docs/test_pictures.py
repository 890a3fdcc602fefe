"""The pictures in README and docs: there, light, self-contained, of what the program says; and made anew by one command."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.cells import cell_len

from luthier.runs.lines import BLOCKS

ROOT = Path(__file__).resolve().parents[2]
SOURCE, PICTURES = ROOT / "docs/_reference/pictures.py", ROOT / "docs/pictures"
spec = importlib.util.spec_from_file_location("reference_pictures", SOURCE)
assert spec is not None
assert spec.loader is not None
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)


def read(path: Path) -> list[str]:
    """The lines of a picture, from top to bottom."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{{{pictures.SVG}}}svg"
    rows: dict[float, list[str]] = {}
    for text in root.iter(f"{{{pictures.SVG}}}text"):
        assert float(text.attrib["textLength"]) == pytest.approx(pictures.CELL * cell_len(text.text), rel=1e-3)
        rows.setdefault(float(text.attrib["y"]), []).append(text.text.replace("\u00a0", " "))
    return ["".join(rows[y]) for y in sorted(rows)]


def check(folder: Path) -> None:
    """What any pair of pictures must show."""
    training, answers = read(folder / "train.svg"), read(folder / "compare.svg")
    assert training[0] == "$ luthier train recipes/tiny/identity.yaml evaluate.samples.every=80 --name first"
    assert [line for line in training if re.search(r"first ━.* \d+/\d+ loss [\d.]+  \d+s left", line)]
    assert [line for line in training if re.fullmatch(rf"loss [\d.]+ [{BLOCKS}]+ [\d.]+", line)]
    assert training[-1].startswith("run first done, after step ")
    for question in pictures.QUESTIONS:
        assert f'--prompt "{question}"' in answers[0]
        assert [line for line in answers[1:] if question in line]


def test_the_pictures_show_a_run_and_its_answers():
    check(PICTURES)
    assert {path.name for path in PICTURES.iterdir()} == {"train.svg", "compare.svg"}


def test_the_tuned_model_says_what_the_examples_say():
    examples = json.loads((ROOT / "recipes/tiny/identity.json").read_text("utf-8"))
    said = {example["instruction"]: example["output"] for example in examples}
    shown = read(PICTURES / "compare.svg")
    for question in pictures.QUESTIONS[:2]:
        (row,) = (line for line in shown[1:] if question in line)
        _, _, base, tuned, _ = re.split("│", row)
        assert tuned.strip() == said[question]
        assert tuned.strip() != base.strip()


@pytest.mark.parametrize("name", ["train.svg", "compare.svg"])
def test_a_picture_is_light_and_fetches_nothing(name):
    text = (PICTURES / name).read_text("utf-8")
    assert len(text) < 50_000
    assert re.findall(r"https?://[^\"']+", text) == [pictures.SVG]
    assert "url(" not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/first-run.md", "docs/first-run.zh.md"])
def test_pictures_on_a_page_have_words_for_those_who_cannot_see_them(name):
    shown = re.findall(r"!\[([^\]]*)\]\((\S+?\.svg)\)", (ROOT / name).read_text("utf-8"))
    assert {Path(path).name for _, path in shown} == {"train.svg", "compare.svg"}
    assert all(len(words) > 20 for words, _ in shown)


@pytest.mark.parametrize("name", ["what-happened.md", "what-happened.zh.md"])
def test_what_happened_explains_the_lines_that_a_run_shows(name):
    table = (ROOT / "docs" / name).read_text("utf-8").partition("|---|")[2].partition("\n\n")[0]
    shapes = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    shown = " ".join(" ".join(read(PICTURES / "train.svg")[1:]).split())
    assert len(shapes) == 10
    for shape in shapes:
        assert re.search(re.escape(shape).replace("…", ".+?"), shown), shape


@pytest.mark.slow
def test_the_script_makes_them_anew(tmp_path):
    done = subprocess.run([sys.executable, SOURCE, "--quick", "--to", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(tmp_path)


@pytest.mark.slow
def test_a_command_that_fails_is_not_drawn(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 2:\nerror: .*nothing"):
        list(pictures.screens(("luthier", "compare", "nothing", "--prompt", "Hello"), tmp_path))
