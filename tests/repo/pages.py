"""Reading the project's Markdown: code blocks by language, links, headings."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    return [text for name, text in _BLOCK.findall(page.read_text("utf-8")) if name == language]


def commands(page: Path) -> list[str]:
    """Every line of the page's bash blocks that is a command."""
    lines = (line.strip() for block in blocks(page, "bash") for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def local_links(page: Path) -> list[str]:
    """Targets of links that lead to files of the project."""
    return [
        target for target in _LINK.findall(page.read_text("utf-8")) if "://" not in target and not target.startswith("mailto:")
    ]
