"""The docs build without a warning, in both languages, and fetch nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ENGLISH_ONLY = {"architecture"}
ELSEWHERE = re.compile(
    r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>|(?:@import|url\()\s*["']?(?:https?:)?//"""
)


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(root / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def names(root):
    return {path.name.removesuffix(".md") for path in (root / "docs").glob("*.md") if not path.name.endswith(".zh.md")}


def test_every_page_is_there_in_both_languages(site, root, names):
    assert {path.name.removesuffix(".zh.md") for path in (root / "docs").glob("*.zh.md")} == names - ENGLISH_ONLY
    for name in names:
        place = "index.html" if name == "index" else f"{name}/index.html"
        assert 'lang="en"' in (site / place).read_text("utf-8")
        assert 'lang="zh"' in (site / "zh" / place).read_text("utf-8")


def test_the_chinese_menu_is_chinese(root):
    text = re.sub(r"!!\S+", "", (root / "mkdocs.yml").read_text("utf-8"))
    config = yaml.safe_load(text)
    (i18n,) = (plugin["i18n"] for plugin in config["plugins"] if "i18n" in plugin)
    translated = i18n["languages"][1]["nav_translations"]
    titles = {title for entry in config["nav"] for title in entry}
    titles |= {
        title
        for entry in config["nav"]
        for inner in entry.values()
        if isinstance(inner, list)
        for part in inner
        for title in part
    }
    assert set(translated) == titles


def test_the_tables_are_filled_in(site):
    for page, word in (("recipe", "learning_rate"), ("commands", "--max-shard-size")):
        for language in ("", "zh/"):
            text = (site / f"{language}{page}/index.html").read_text("utf-8")
            assert word in text
            assert "<!-- " not in re.sub(r"(?s)<script.*?</script>", "", text)


def test_nothing_is_fetched_from_elsewhere(site):
    found = {
        str(path.relative_to(site)): hits
        for path in [*site.rglob("*.html"), *site.rglob("*.css")]
        if (hits := ELSEWHERE.findall(path.read_text("utf-8")))
    }
    assert not found


def test_what_makes_the_pages_is_not_published(site):
    assert not list(site.rglob("_reference"))


def dead_links(site: Path) -> list[str]:
    """Links within the site that lead to no file, or to no heading of it. (MkDocs checks headings of the first language alone.)"""
    texts = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    places = {path: set(re.findall(r"""\sid=["']?([^"'\s>]+)""", text)) for path, text in texts.items()}
    dead = []
    for path, text in texts.items():
        for link in re.findall(r"""<a\s[^>]*href=["']?([^"'\s>]+)""", text):
            target, _, heading = unquote(link).partition("#")
            if "://" in target or target.startswith(("mailto:", "/")):
                continue
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (heading not in ("", "__top") and heading not in places[file]):
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def test_every_link_leads_to_a_file_and_a_heading(site):
    assert not dead_links(site)


def test_a_link_to_a_heading_that_is_not_there_would_be_found(tmp_path):
    (tmp_path / "index.html").write_text(
        '<h2 id="here"></h2><a href="#here"></a><a href="#nowhere"></a><a href="other/"></a>', "utf-8"
    )
    assert dead_links(tmp_path) == ["index.html: #nowhere", "index.html: other/"]
