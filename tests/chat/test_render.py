"""`render` gives the text that transformers gives, for all shared templates, and refuses what their templates refuse."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from luthier.chat import TemplateRefused, render
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


def test_generation_markers_do_not_change_the_text() -> None:
    source = "{% for m in messages %}[{% generation %}{% set x = m['content'] %}{{ x }}{% endgeneration %}{{ x }}]{% endfor %}"
    assert render(source, USER) == "[hi]"


def test_reasoning_goes_by_all_its_names() -> None:
    message = [{"role": "assistant", "reasoning": "so", "content": "hi"}]
    assert render("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", message) == "soso"


def test_objects_are_inert() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": Path("secret")}]) == "<PosixPath>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}{{ ''.__class__.mro() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ 'a' * 999999999 }}",
        "{{ 2 ** 99999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set x %}{{ n.x }}{{ n.x }}{% endset %}"
        "{% set n.x = x %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99) %}" + "x" * 999 + "{% endfor %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% for i in range(9) %}{{ [0] | map('#tick', -10**9) | list | length }}{{ 'x' * 9999999 }}{% endfor %}",
        "{{ ([''] | map('.', '__class__') | first)() }}",
    ],
)
def test_fences_hold(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.chat.sandbox.SECONDS", 0.2)
    with pytest.raises(TemplateRefused):
        render(source, USER)


def test_a_long_conversation_passes_the_fences() -> None:
    long = [{"role": "user", "content": "x" * 1000}] * 5000
    assert len(render("{% for m in messages %}{{ m.content | trim | replace('y', 'z') }}{% endfor %}", long)) == 5_000_000


def test_big_numbers_are_no_crime() -> None:
    source = "{{ '%d' % 1234567 }} {{ '{}'.format(7654321) }} {{ messages[0].content.find('i', 300000) }} {{ 'a' | center(3) }}"
    assert render(source, USER) == "1234567 7654321 -1  a "


def test_broken_jinja_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="its line 2"):
        render("{% if x %}\n{% endfor %}", USER)
