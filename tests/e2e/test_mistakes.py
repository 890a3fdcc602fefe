"""A user's mistake is one line that names file and line, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.cli.app import run
from tests.workspace import Workspace, alpaca_rows

Damage = Callable[[Workspace], list[str]]


def rows_with(space: Workspace, line: int, text: str) -> None:
    """Write the rows as JSON lines with one of them replaced."""
    lines = [json.dumps(row) for row in alpaca_rows(10)]
    lines[line - 1] = text
    (space.folder / "rows.json").write_text("\n".join(lines))


def broken_json(space: Workspace) -> list[str]:
    rows_with(space, 7, '{"instruction": "hi", "output": ')
    return []


def missing_output(space: Workspace) -> list[str]:
    rows_with(space, 4, '{"instruction": "hi", "input": ""}')
    return []


def role_order(space: Workspace) -> list[str]:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    lines = [json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})] * 2
    (space.folder / "rows.json").write_text("\n".join([*lines, json.dumps({"messages": turns})]))
    return []


def empty_file(space: Workspace) -> list[str]:
    (space.folder / "rows.json").write_text("")
    return []


def unknown_key(space: Workspace) -> list[str]:
    space.recipe.write_text(space.recipe.read_text().replace("learning_rate:", "learning_rat:"))
    return []


def nothing_learnt(space: Workspace) -> list[str]:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    (space.folder / "rows.json").write_text(json.dumps({"messages": turns}))
    return []


def token_without_embedding(space: Workspace) -> list[str]:
    """Somebody has added a token to the tokenizer, and not to the model."""
    file = space.folder / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 4096, "content": "Count", "special": False})
    file.write_text(json.dumps(content))
    return []


CASES: dict[str, tuple[Damage, str]] = {
    "broken JSON at line 7": (broken_json, r"rows\.json:7: "),
    "missing output": (missing_output, r"rows\.json:4: .*output"),
    "wrong role order": (role_order, r"rows\.json:3: .*user"),
    "empty file": (empty_file, r"rows\.json: .*empty"),
    "unknown recipe key": (unknown_key, r"recipe\.yaml:\d+: .*learning_rat.*learning_rate"),
    "unknown template": (lambda space: ["data.template=qwne"], r"recipe\.yaml:\d+: .*qwne.*qwen"),
    "missing model folder": (lambda space: ["model.path=./nowhere"], r"recipe\.yaml:\d+: .*nowhere"),
    "not a number": (lambda space: ["method.rank=abc"], r"recipe\.yaml:\d+: .*method\.rank=abc"),
    "max_length beyond the model's": (lambda space: ["data.max_length=4096"], r"recipe\.yaml:\d+: .*4096.*512"),
    "nothing supervised": (nothing_learnt, r"rows\.json:1: "),
    "contradicting batch sizes": (lambda space: ["train.per_device_batch_size=3"], r"recipe\.yaml:\d+: .*3 × 1 × 1 = 3"),
    "patience without validation": (lambda space: ["evaluate.patience=2"], r"recipe\.yaml.*data\.validation"),
    "a token without embedding": (
        token_without_embedding,
        r"rows\.json:1: .*token 4096 \(`Count`\).*for 4096 tokens.*`model\.new_tokens`",
    ),
    "missing data file": (lambda space: ["data.train=[row.json]"], r"row\.json.*rows\.json"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path)
    damage, expected = CASES[name]
    overrides = damage(space)
    capsys.readouterr()
    assert run(["train", "recipe.yaml", *overrides]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert re.search(expected, lines[0]), lines[0]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert not any((tmp_path / "runs").glob("*/checkpoints/*"))


def test_a_token_without_embedding_gets_one_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    token_without_embedding(Workspace.make(tmp_path))
    assert run(["train", "recipe.yaml", "model.new_tokens=[Count]", "train.max_steps=1", "-q"]) == 0
    assert run(["chat", "first", "--prompt", "Count to 3.", "--max-new-tokens", "1"]) == 0
    assert run(["chat", "model", "--prompt", "Count to 3.", "--max-new-tokens", "1"]) == 2


def test_the_same_name_can_be_used_after_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path)
    assert run(["train", "recipe.yaml", "data.template=qwne", "-q"]) == 2
    assert run(["train", "recipe.yaml", "-q"]) == 0
    assert (space.run() / "final").is_dir()
