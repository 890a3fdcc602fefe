"""Weight files of another size hold the same tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from luthier import UserError
from luthier.export.shards import reshard
from tests.chat_folders import adapter_folder, model_folder


def test_there_and_back(tmp_path: Path) -> None:
    folder = model_folder("mixtral", tmp_path / "model")
    before = load_file(folder / "model.safetensors")
    assert reshard(folder, tmp_path / "many", max_shard_size="100KB") > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(before)
    assert max(file.stat().st_size for file in (tmp_path / "many").glob("*.safetensors")) < 110_000
    assert reshard(tmp_path / "many", tmp_path / "one") == 1
    after = load_file(tmp_path / "one" / "model.safetensors")
    assert all(after[name].equal(value) for name, value in before.items())
    assert {file.name for file in (tmp_path / "one").iterdir()} == {file.name for file in folder.iterdir()}


def test_mistakes_leave_nothing_behind(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base)
    with pytest.raises(UserError, match="one small file"):
        reshard(adapter, tmp_path / "out")
    with pytest.raises(UserError, match="is not a size"):
        reshard(base, tmp_path / "out", max_shard_size="many")
    with pytest.raises(UserError, match="not empty"):
        reshard(base, adapter)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
