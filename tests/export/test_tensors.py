"""Files written tensor by tensor are the ones that safetensors writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.export.tensors import Later, bytes_of, write_model
from luthier.models.stored import StoredWeights

VALUES = {
    "a": torch.randn(3, 5),
    "b.weight": torch.randn(4).bfloat16(),
    "odd": torch.arange(3, dtype=torch.uint8),
    "empty": torch.zeros(0, 2),
    "number": torch.tensor(7),
    "turned": torch.randn(6, 2).half().T,
}


def later(values: dict[str, Tensor]) -> dict[str, Later]:
    return {name: Later(tuple(value.shape), value.dtype, lambda value=value: value) for name, value in values.items()}


def test_one_file_and_shards_hold_the_same(tmp_path: Path) -> None:
    for folder, largest in (("one", 10**6), ("many", 30)):
        (tmp_path / folder).mkdir()
        write_model(tmp_path / folder, later(VALUES), largest=largest)
        files = sorted((tmp_path / folder).glob("*.safetensors"))
        found = {name: value for file in files for name, value in load_file(file).items()}
        assert found.keys() == VALUES.keys()
        assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in VALUES.items())
        stored = StoredWeights(tmp_path / folder)
        assert sorted(stored) == sorted(VALUES)
        assert all(torch.equal(stored.tensor(name), value) for name, value in VALUES.items())
        assert stored["turned"].shape == (2, 6)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    assert len(files) == 3
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in VALUES.values())
    assert "number" in stored
    assert "nothing" not in stored


def test_a_tensor_is_cast_and_made_once_in_its_turn(tmp_path: Path) -> None:
    made = []

    def make(name: str) -> Tensor:
        made.append(name)
        return torch.full((2,), 1.5)

    tensors = {name: Later((2,), torch.bfloat16, lambda name=name: make(name)) for name in "zyx"}
    write_model(tmp_path, tensors, largest=100)
    assert made == ["z", "y", "x"]
    assert load_file(tmp_path / "model.safetensors")["y"].dtype == torch.bfloat16


def test_sizes_are_read() -> None:
    assert [bytes_of(size) for size in ("2GB", "500MB", "1.5 kB")] == [2 * 10**9, 5 * 10**8, 1500]
    with pytest.raises(ValueError, match="2 bananas"):
        bytes_of("2 bananas")
