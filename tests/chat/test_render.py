"""`render` gives the text that transformers gives, for all shared templates, and refuses what their templates refuse."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from luthier.chat import TemplateRefused, render
from luthier.chat.sandbox import CHARACTERS
from luthier.errors import UserError

USER = [{"role": "user", "content": "hi"}]


def golden(shared: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    folder = shared / "data/chat_templates"
    return [
        (path.stem, expected["context"], case)
        for path in sorted((folder / "expected").glob("*.json"))
        for expected in [json.loads(path.read_text(encoding="utf-8"))]
        for case in expected["cases"]
    ]


def rendered(shared: Path, name: str, context: dict[str, Any], case: dict[str, Any]) -> str:
    folder = shared / "data/chat_templates"
    conversation = json.loads((folder / "conversations.json").read_text(encoding="utf-8"))[case["conversation"]]
    variables = {key: value for key, value in context.items() if key != "strftime_now"} | case["kwargs"]
    source = (folder / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    now = datetime.fromisoformat(context["strftime_now"])
    return render(source, conversation["messages"], conversation.get("tools"), now, **variables)


def test_golden_texts(shared: Path) -> None:
    cases = golden(shared)
    assert len(cases) == 992
    for name, context, case in cases:
        if "expected" in case:
            assert rendered(shared, name, context, case) == case["expected"], (name, case["conversation"])


def test_golden_refusals(shared: Path) -> None:
    refused = [(name, context, case) for name, context, case in golden(shared) if "error" in case]
    assert len(refused) == 136
    for name, context, case in refused:
        with pytest.raises(TemplateRefused) as caught:
            rendered(shared, name, context, case)
        if case["error_kind"] == "raised_by_template":
            assert f"TemplateError: {caught.value.reason}" == case["error"]
