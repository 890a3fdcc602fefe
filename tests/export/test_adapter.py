"""An adapter for other engines has the same updates, and the scalings those engines know."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from luthier import UserError
from luthier.export.adapter import for_llamacpp, for_vllm
from luthier.export.gguf.layouts import Paired
from tests.chat_folders import adapter_folder, model_folder

TOKENS = torch.tensor([[5, 9, 200, 17, 3, 88, 41, 250]])
PATTERNS = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3.0}, "rslora": True, "target": ("q_proj", "v_proj")}


@pytest.mark.parametrize("settings", [{}, PATTERNS], ids=["plain", "patterns"])
def test_vllm_gets_one_rank_and_one_scaling(settings: dict[str, object], tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base, **settings)
    assert for_vllm(adapter, tmp_path / "out").ok
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["r"] == said["lora_alpha"] == 4
    assert not said["use_rslora"]
    assert not said["rank_pattern"]
    with torch.no_grad():
        ours, theirs = (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()(TOKENS).logits
            for folder in (adapter, tmp_path / "out")
        )
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "qwen3"])
def test_llamacpp_gets_factors_that_lie_as_its_weights_do(family: str, tmp_path: Path) -> None:
    base = model_folder(family, tmp_path / "base")
    adapter = adapter_folder(family, tmp_path / "adapter", base)
    assert for_llamacpp(adapter, tmp_path / "out.gguf").ok
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 0.0
    names = {tensor.name for tensor in reader.tensors}
    assert len(names) > 10
    assert all(name.endswith((".weight.lora_a", ".weight.lora_b")) for name in names)


def test_the_rows_of_b_turn_with_those_of_the_weight() -> None:
    weight, a, b = torch.randn(64, 32), torch.randn(4, 32), torch.randn(64, 4)
    layout = Paired(4)
    torch.testing.assert_close(layout.to_gguf([weight + b @ a]), layout.to_gguf([weight]) + layout.to_gguf([b]) @ a)


def test_what_is_no_low_rank_update_is_refused(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base, dora=True)
    with pytest.raises(UserError, match="DoRA"):
        for_vllm(adapter, tmp_path / "out")
    with pytest.raises(UserError, match="DoRA"):
        for_llamacpp(adapter, tmp_path / "out.gguf")
    with pytest.raises(UserError, match="without adapter"):
        for_vllm(base, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
