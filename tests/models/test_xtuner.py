"""XTuner's checkpoints are read without running anything, and the adapter in them computes what it did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import luthier.models
from luthier.errors import UserError
from luthier.models.adapters.xtuner import DEEPSPEED, Inert, import_xtuner, read_inert
from luthier.models.methods import load_adapter
from tests.models.legacy.cases import copy_of, expected, fixture, loss_of

RANK, ALPHA = 3, 6.0
SCRIPT = """
max_length = 2048
model = dict(
    llm=dict(
        pretrained_model_name_or_path='internlm/internlm2_5-7b-chat',
        quantization_config=dict(load_in_4bit=True, type='transformers.BitsAndBytesConfig'),
        type='transformers.AutoModelForCausalLM.from_pretrained'),
    lora=dict(bias='none', lora_alpha=6.0, lora_dropout=0.1, r=3, task_type='CAUSAL_LM', type='peft.LoraConfig'),
    type='xtuner.model.SupervisedFinetune')
"""


class HistoryBuffer:
    """As MMEngine keeps one for each logged number."""

    def __init__(self) -> None:
        self.history = np.arange(3.0)


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class under MMEngine's name while a checkpoint is written; when it is read, nobody has it."""
    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else ModuleType(name))
    return HistoryBuffer


def adapter(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """XTuner's tensors of an adapter on `wqkv`; `weights` get its update added."""
    generator, found = torch.Generator().manual_seed(0), {}
    for layer in range(2):
        module = f"model.layers.{layer}.attention.wqkv"
        rows, columns = weights[f"{module}.weight"].shape
        a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((RANK, columns), (rows, RANK)))
        weights[f"{module}.weight"] += ALPHA / RANK * b @ a
        found |= {f"llm.base_model.model.{module}.lora_{part}.default.weight": value for part, value in (("A", a), ("B", b))}
    return found


def write(file: Path, tensors: dict[str, Tensor], script: str | None = SCRIPT, **more: Any) -> Path:
    meta = {"epoch": 0, "iter": 500, "cfg": script, "experiment_name": "internlm2_5_chat_7b_qlora"}
    torch.save({"state_dict": tensors, "meta": meta, "optimizer": {"param_groups": [{"lr": 2e-4}]}} | more, file)
    return file


def test_an_imported_adapter_computes_what_it_did(shared: Path, tmp_path: Path, mmengine: type) -> None:
    source = fixture(shared, "internlm2")
    changed = copy_of(source, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    scalars = {"train/loss": mmengine(), "train/lr": mmengine()}
    file = write(tmp_path / "iter_500.pth", adapter(weights), message_hub={"log_scalars": scalars, "runtime_info": {"iter": 500}})
    save_file(weights, changed / "model.safetensors")
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    import_xtuner(file, tmp_path / "out")
    assert "mmengine" not in sys.modules
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["target_modules"]) == (RANK, ALPHA, 0.1, ["wqkv"])
    assert config["base_model_name_or_path"] == "internlm/internlm2_5-7b-chat"
    model, values = luthier.models.load(str(source)), expected(source)
    load_adapter(model, tmp_path / "out")
    with torch.no_grad():
        wanted = float(loss_of(luthier.models.load(str(changed)), values))
        assert float(loss_of(model, values)) == pytest.approx(wanted, rel=1e-5)


def test_deepspeed_s_folder_is_read(shared: Path, tmp_path: Path) -> None:
    weights = load_file(fixture(shared, "internlm2") / "model.safetensors")
    (tmp_path / "iter_500.pth").mkdir()
    tensors = {name: value.half() for name, value in adapter(weights).items()}
    torch.save({"module": tensors, "ds_version": "0.14.0"}, tmp_path / "iter_500.pth" / DEEPSPEED)
    config = import_xtuner(tmp_path / "iter_500.pth", tmp_path / "out", base="owner/base", alpha=16)
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (RANK, 16, "owner/base")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored["base_model.model.model.layers.1.attention.wqkv.lora_B.weight"].dtype == torch.float16


def test_what_is_trained_whole_comes_along(tmp_path: Path) -> None:
    prefix = "llm.base_model.model."
    tensors = {f"{prefix}model.layers.0.self_attn.q_proj.lora_{part}.default.weight": torch.ones(2, 2) for part in "AB"}
    tensors |= {f"{prefix}lm_head.modules_to_save.default.weight": torch.ones(4, 2)}
    tensors |= {f"{prefix}model.layers.1.self_attn.q_proj.lora_{part}.default.weight": torch.ones(2, 2) for part in "AB"}
    tensors |= {f"{prefix}model.layers.0.mlp.up_proj.lora_A.default.weight": torch.ones(1, 2)}
    tensors |= {f"{prefix}model.layers.0.mlp.up_proj.lora_B.default.weight": torch.ones(2, 1)}
    config = import_xtuner(write(tmp_path / "iter_1.pth", tensors), tmp_path / "out")
    assert (config["modules_to_save"], config["r"]) == (["lm_head"], 2)
    assert config["rank_pattern"] == {"model.layers.0.mlp.up_proj": 1}
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")


def test_no_code_in_the_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    class EvilCall:
        def __reduce__(self) -> tuple[object, ...]:
            return (eval, (f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()",))

    found = read_inert(write(tmp_path / "iter_1.pth", {}, message_hub=[EvilCall()]))
    assert isinstance(found["message_hub"][0], Inert)
    with pytest.raises(UserError, match=r"read safely \(Trying to call reduce for unrecognized function") as caught:
        read_inert(write(tmp_path / "iter_1.pth", {}, message_hub=[Evil()]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (None, {"base": "owner/base"}, "does not say LoRA's alpha"),
        (None, {"alpha": 16}, "does not name its base model"),
        ("model = dict(", {"alpha": 16}, "does not name its base model"),
    ],
)
def test_what_nobody_knows_is_asked_for(script: str | None, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = {f"llm.base_model.model.q_proj.lora_{part}.default.weight": torch.ones(2, 2) for part in "AB"}
    with pytest.raises(UserError, match=message) as caught:
        import_xtuner(write(tmp_path / "iter_1.pth", tensors, script), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        import_xtuner(tmp_path / "iter_1.pth", tmp_path / "out")
    (tmp_path / "iter_1.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
        import_xtuner(tmp_path / "iter_1.pth", tmp_path / "out")
    with pytest.raises(UserError, match="no LoRA weights among its 1 tensors"):
        import_xtuner(write(tmp_path / "iter_1.pth", {"llm.model.norm.weight": torch.ones(2)}), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="already there, and not empty"):
        import_xtuner(tmp_path / "iter_1.pth", tmp_path / "full")
