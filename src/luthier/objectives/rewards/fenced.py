"""Fenced blocks of Markdown, in which models write code and JSON."""

from __future__ import annotations

FENCE = "```"


def last_block(text: str) -> str | None:
    """The content of the last fenced block, which may lack its end; None if there is none."""
    block: list[str] | None = None
    last: list[str] | None = None
    for line in text.splitlines():
        if line.strip().startswith(FENCE) and (block is None or line.strip() == FENCE):
            block, last = ([], last) if block is None else (None, block)
        elif block is not None:
            block.append(line)
    found = block if block else last
    return None if found is None else "\n".join(found)
