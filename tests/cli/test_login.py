"""`luthier login` hands the token on, and nothing else."""

from __future__ import annotations

import io
import sys

import pytest

from luthier.cli.app import run


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []

    def login(token: str, hub: str) -> str:
        calls.append((token, hub))
        return "the hub"

    monkeypatch.setattr("luthier.models.hub.login", login)
    return calls


def test_the_token_comes_from_the_option_or_from_standard_input(
    stored: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["login", "--token", "hf_abc"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("ms-xyz\n"))
    assert run(["login", "--hub", "modelscope"]) == 0
    assert stored == [("hf_abc", "huggingface"), ("ms-xyz", "modelscope")]
    output = capsys.readouterr()
    assert "hf_abc" not in output.out + output.err


def test_an_empty_token_is_refused(stored: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run(["login"]) == 2
    assert stored == []
