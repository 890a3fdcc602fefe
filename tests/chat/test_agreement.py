"""Training and serving templates compared: families with what their models came with, and what is found where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.chat import ChatTemplate, resolve
from luthier.chat.agreement import PLAIN, PROBES, Finding, compare


def found(training: ChatTemplate, serving: ChatTemplate, probes: tuple[str, ...] = tuple(PROBES)) -> dict[str, Finding]:
    """Characters are the tokens here."""
    encode, decode = (lambda text: [ord(character) for character in text]), (lambda ids: "".join(map(chr, ids)))
    return {finding.probe: finding for finding in compare(training, serving, encode, decode, probes)}


@pytest.mark.parametrize(
    ("name", "family", "differ"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "qwen2.5", set()),
        ("Qwen-Qwen3-0.6B", "qwen3", set()),
        ("meta-llama-Llama-3.1-8B-Instruct", "llama3.1", set()),
        ("microsoft-Phi-3.5-mini-instruct", "phi3", {"a call of a function", "a result of a function"}),
        ("GLM-4.6", "glm4-moe", set()),
        ("openai-gpt-oss-120b", "gpt-oss", set()),
        (
            "google-gemma-2-2b-it",
            "gemma",
            {"a system message", "two questions", "a call of a function", "a result of a function"},
        ),
        ("Qwen-Qwen2.5-7B-Instruct", "chatml", {"a question", "a thought", "a call of a function", "a result of a function"}),
        ("Qwen-Qwen2.5-7B-Instruct", "alpaca", set(PROBES)),
    ],
)
def test_families_agree_with_their_models(shared: Path, name: str, family: str, differ: set[str]) -> None:
    folder = shared / "data/chat_templates"
    context = json.loads((folder / "expected" / f"{name}.json").read_text(encoding="utf-8"))["context"]
    variables = {key: value for key, value in context.items() if key != "strftime_now"}
    serving = ChatTemplate(name, (folder / f"templates/{name}.jinja").read_text(encoding="utf-8"), variables)
    findings = found(resolve(family, None, variables), serving)
    assert {probe for probe, finding in findings.items() if not finding.agree} == differ
    assert all(finding.agree for finding in found(serving, serving, PLAIN).values())


def test_the_first_token_that_differs_is_named() -> None:
    ours = ChatTemplate("ours", "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}", {})
    theirs = ChatTemplate("theirs", ours.source.replace(">", "> "), {})
    finding = found(ours, theirs, PLAIN)["a question"]
    assert finding.line() == "a question: differs at token 6 (after '<user>'): trained 'What', served ' Wha'"
    ended = ChatTemplate("ended", ours.source.replace(";", "!"), {})
    finding = found(ours, ended, ("two questions",))["two questions"]
    assert (finding.agree, finding.trained[0], finding.served[0]) == (False, ";", "!")
