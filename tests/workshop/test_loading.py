"""The template of a run: warned about where the model came with another, and the same in training and in chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.chat import families, resolve
from luthier.data.tokenizer import load_tokenizer
from luthier.recipe.load import load_recipe
from luthier.workshop.assembly import prepare_data
from luthier.workshop.loading import served_otherwise, template_for
from tests.chat_folders import write_tokenizer

TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A tool.", "reasoning_content": "First thought."},
    {"role": "user", "content": "What for?"},
    {"role": "assistant", "content": "For work.", "reasoning_content": "Second thought."},
]


def test_another_template_than_the_models_own_is_warned_about(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, template=families()["chatml"].source))
    variables = tokenizer.variables
    assert served_otherwise(resolve("auto", tokenizer.chat_template, variables), tokenizer) is None
    assert served_otherwise(resolve("yi", None, variables), tokenizer) is None  # other Jinja, the same text
    warning = served_otherwise(resolve("alpaca", None, variables), tokenizer)
    assert warning is not None
    assert "`alpaca` is not the one that this model came with; a question: differs at the first token" in warning
    assert "trained '<s>Bel', served '<|im'" in warning
    bare = load_tokenizer(write_tokenizer(tmp_path / "bare", template=None))
    assert served_otherwise(resolve("default", None, variables), bare) is None


@pytest.mark.parametrize(
    ("settings", "segments"),
    [
        ("", ["⟦<think>\nFirst thought.\n</think>\n\nA tool.⟧", "A tool.…⟦<think>\nSecond thought.\n</think>\n\nFor work.⟧"]),
        (
            ", thinking: keep",
            ["⟦<think>\nFirst thought.\n</think>\n\nA tool.⟧…⟦<think>\nSecond thought.\n</think>\n\nFor work.⟧"],
        ),
        (", thinking: drop", ["⟦A tool.⟧…<think>\n\n</think>\n\n⟦For work.⟧"]),
        (
            ", learn_thinking: false",
            ["<think>\nFirst thought.\n</think>\n\n⟦A tool.⟧", "A tool.…<think>\nSecond thought.\n</think>\n\n⟦For work.⟧"],
        ),
    ],
)
def test_a_recipe_chooses_what_becomes_of_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, segments: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    model = write_tokenizer(tmp_path / "model")
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(f"model: {model}\nstage: sft\ndata: {{train: rows.jsonl, template: qwen3{settings}}}\n")
    recipe = load_recipe(str(recipe_file), [])
    tokenizer, template, dataset = prepare_data(recipe)
    shown = []
    for number in range(dataset.store.header.segments):
        tokens, weight = dataset.store.segment(number)
        pieces, learnt = "", False
        for token, share in zip(tokens.tolist(), weight.tolist(), strict=True):
            if (share > 0) != learnt:
                learnt = share > 0
                pieces += "⟦" if learnt else "⟧"
            pieces += tokenizer.decode([token], skip_special=False)
        shown.append(pieces.replace("<|im_end|>", ""))
    for text, expected in zip(shown, segments, strict=True):
        for part in expected.split("…"):
            assert part in text
    assert template_for(recipe, tokenizer).source == template.source
