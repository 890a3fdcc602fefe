"""A template that runs out of time ends the command instead of every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.chat import TemplateRefused, resolve, sandbox
from luthier.data.control_tokens import ControlTokens
from luthier.data.prepare import prepare
from luthier.data.texts import PATIENCE, supervised
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UserError
from luthier.recipe.schema import Recipe

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_a_few_conversations_may_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", -1.0)
    chosen, control = resolve("chatml", None, {}), ControlTokens([])
    for _ in range(PATIENCE - 1):
        with pytest.raises(TemplateRefused, match="it takes longer than"):
            supervised(chosen, control, TALK, None, "assistant")
    with pytest.raises(UserError, match=r"data\.template: `chatml` takes longer than .* and this is number 3") as caught:
        supervised(chosen, control, TALK, None, "assistant")
    assert not isinstance(caught.value, TemplateRefused)


def test_bad_rows_that_are_skipped_are_not_waited_for_one_by_one(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sandbox, "SECONDS", -1.0)
    (tmp_path / "a.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 50)
    tokenizer = load_tokenizer(shared / "data/tokenizers/minimind")
    recipe = Recipe.model_validate({"model": "tiny", "data": {"train": [str(tmp_path / "a.jsonl")], "on_error": "skip"}})
    with pytest.raises(UserError, match="takes longer"):
        prepare(recipe, tokenizer, resolve("chatml", None, tokenizer.variables))
