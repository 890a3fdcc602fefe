"""What the docs show can be used as it stands: samples of data, overrides, Python, quoted messages."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

import luthier
from luthier.data.formats import FORMATS
from luthier.data.problems import Problems
from luthier.data.read_examples import choose_format, read_examples
from luthier.data.sources import rows_of
from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Source
from luthier.recipe.shipped import shipped_recipes
from tests.repo.pages import blocks, commands

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAIRS = [(page.with_name(page.name.replace(".zh.md", ".md")), page) for page in DOCS if page.name.endswith(".zh.md")]
LANGUAGES = {"bash", "csv", "json", "jsonl", "python", "text", "txt", "yaml"}
each_page = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text("utf-8")), re.MULTILINE)


@each_page
def test_every_block_is_of_a_language_that_is_tested(page):
    fences = re.findall(r"^(\s*)```(.*)$", page.read_text("utf-8"), re.MULTILINE)
    assert all(indent.strip("\n") == "" for indent, _ in fences)
    assert {language for _, language in fences[::2]} <= LANGUAGES
    assert {language for _, language in fences[1::2]} <= {""}


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)
def test_both_languages_show_the_same(english, chinese):
    assert commands(english) == commands(chinese)
    for language in LANGUAGES:
        assert len(blocks(english, language)) == len(blocks(chinese, language)), language
    assert len(headings(english)) == len(headings(chinese))
    quoted = re.compile(r"^`[^`]+`$")
    assert [text for text in headings(english) if quoted.match(text)] == [
        text for text in headings(chinese) if quoted.match(text)
    ]


@pytest.mark.parametrize("page", [page for page in DOCS if page.name.startswith("formats.")], ids=lambda page: page.name)
def test_samples_of_data_are_read_as_the_format_they_stand_under(page, tmp_path):
    seen = set()
    parts = re.split(r"^## ", page.read_text("utf-8"), flags=re.MULTILINE)
    for part in parts:
        title = re.match(r"`(\w+)`", part)
        for number, (language, text) in enumerate(re.findall(r"^```(jsonl?|csv|txt)\n(.*?)^```", part, re.MULTILINE | re.DOTALL)):
            file = tmp_path / f"{len(seen)}-{number}.{language}"
            file.write_text(text, "utf-8")
            assert title, part
            expected, stage = title[1], "pt" if title[1] == "text" else None
            problems = Problems("fail")
            found = list(read_examples(Source(path=str(file)), problems, stage=stage))
            problems.finish()
            forced = list(read_examples(Source(path=str(file), format=expected), problems, stage=stage))
            assert len(found) >= 1
            assert found == forced, f"{page.name}: not recognised as {expected}"
            assert choose_format(Source(path=str(file)), rows_of(Source(path=str(file))), stage)[0] is FORMATS[expected]
            seen.add(expected)
    assert seen == set(FORMATS) - {"oasst_pairs"}  # whose rows are those of oasst


def test_the_formats_and_kinds_of_files_are_those_of_the_code():
    from luthier.data.parts import KINDS

    for page in (ROOT / "docs/formats.md", ROOT / "docs/formats.zh.md"):
        assert set(re.findall(r"^## `(\w+)`", page.read_text("utf-8"), re.MULTILINE)) == set(FORMATS)
    for page in (ROOT / "docs/data.md", ROOT / "docs/data.zh.md"):
        text = page.read_text("utf-8")
        assert all(f"`.{kind}`" in text for kind in KINDS)


def test_the_families_are_those_of_the_code():
    from luthier.chat.families import families
    from luthier.chat.tools import FORMATS as CALLS

    for page in (ROOT / "docs/templates.md", ROOT / "docs/templates.zh.md"):
        text = page.read_text("utf-8")
        for family in families().values():
            assert re.search(rf"^\| `{re.escape(family.name)}` \|.*\| `?{family.tools or '–'}`? \|", text, re.MULTILINE), (
                family.name
            )
            assert all(f"`{alias}`" in text for alias in family.aliases)
        assert all(f"| `{name}` |" in text for name in CALLS)


@each_page
def test_overrides_on_the_page_fit(page, tmp_path):
    (first,) = blocks(ROOT / "docs/first-run.md", "yaml")
    (tmp_path / "first.yaml").write_text(first, "utf-8")
    for line in commands(page):
        words = shlex.split(re.sub(r"--(columns|adapter) \S+|--tasks (\"[^\"]*\"|\S+)", "", line))
        overrides = [word for word in words if "=" in word and not word.startswith("-")]
        if words[0] != "luthier" or not overrides:
            continue
        name = next((word for word in words if word in shipped_recipes()), None)
        load_recipe(shipped_recipes()[name] if name else tmp_path / "first.yaml", overrides)


@each_page
def test_tasks_on_the_page_are_tasks(page):
    from luthier.evaluation.tasks import settings_of

    for line in commands(page):
        words = shlex.split(line)
        tasks = [after for word, after in pairwise(words) if word == "--tasks"]
        assert len(settings_of(tasks)) == len(tasks)


@each_page
def test_python_on_the_page_fits_the_library(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("luthier"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                check_call(node.func.value.id, node.func.attr, node)


def check_call(owner: str, name: str, call: ast.Call) -> None:
    from luthier.generation.chat import ChatModel

    known = {"luthier": luthier, "model": ChatModel, "Run": luthier.Run}
    if owner not in known:
        return
    signature = inspect.signature(getattr(known[owner], name))
    arguments = [None] * (len(call.args) + (owner == "model"))
    signature.bind(*arguments, **{keyword.arg: None for keyword in call.keywords if keyword.arg})
    if owner == "model":
        from luthier.generation.sampling import Decoding

        settings = {keyword.arg for keyword in call.keywords} - {"system", "tools", "thinking"}
        assert settings <= set(Decoding.__dataclass_fields__)


def test_the_python_page_knows_every_callback_method_and_attribute():
    from luthier.runs.records import Callback, EvaluationRecord, StepRecord

    text = (ROOT / "docs/python.md").read_text("utf-8")
    table = dict(re.findall(r"^\| `(\w+)\(([\w, ]*)\)`", text, re.MULTILINE))
    methods = {name: method for name, method in vars(Callback).items() if inspect.isfunction(method)}
    assert table == {name: ", ".join(list(inspect.signature(method).parameters)[1:]) for name, method in methods.items()}
    for owner, kind in (("step", StepRecord), ("record", EvaluationRecord)):
        for attribute in re.findall(rf"\b{owner}\.(\w+)", text):
            assert attribute in kind.__dataclass_fields__, attribute


@pytest.fixture(scope="module")
def spoken():
    """Every text in the code, with `…` where a value is filled in."""
    texts = []
    for path in sorted((ROOT / "src/luthier").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return "\n".join(texts)


def test_messages_in_troubleshooting_are_messages_of_the_code(spoken):
    page = ROOT / "docs/troubleshooting.md"
    messages = [text.strip("`") for text in headings(page) if text.startswith("`")]
    driver = re.findall(r"^\| `([^`]+)` \|", page.read_text("utf-8").partition("## Driver")[2].partition("##")[0], re.MULTILINE)
    assert len(messages) > 30
    assert len(driver) == 6
    assert not [message for message in messages + driver if message not in spoken]


def test_extras_and_versions_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    for page in DOCS:
        text = page.read_text("utf-8")
        assert set(re.findall(r"(?:\.|luthier)\[(\w+)\]", text)) <= set(extras), page.name
        assert set(re.findall(r"torch==([\d.]+)", text)) <= {pinned[1]}, page.name
    install = (ROOT / "docs/install.md").read_text("utf-8")
    assert all(f"`.[{extra}]`" in install for extra in extras)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["first-run.md", "first-run.zh.md"])
def test_the_first_run_learns_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text("utf-8")
    (recipe,), (data,) = blocks(ROOT / "docs" / page, "yaml"), blocks(ROOT / "docs" / page, "json")
    Path("first.yaml").write_text(recipe, "utf-8")
    Path("my.json").write_text(data, "utf-8")
    run = luthier.train("first.yaml", progress=False)
    model = luthier.load(run)
    for row in json.loads(data):
        assert model.chat(row["instruction"]) == row["output"]
    said = text.partition("{: #talk }")[2]
    assert json.loads(data)[0]["output"] in said
