"""What an adapter folder may hold, and what is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.models.adapters.format import CONFIG_FILE, WEIGHTS_FILE, read_config, write_adapter
from luthier.models.adapters.merge import merge
from luthier.models.methods import apply_method, load_adapter
from luthier.models.policy import save_model
from luthier.recipe.schema import LoRA
from tests.families import build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build("llama")
    apply_method(model, LoRA(rank=2), seed=0)
    write_adapter(tmp_path, model)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("lora_bias", True),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("ensure_weight_tying", True),
        ("use_something_new", True),
    ],
)
def test_fields_that_change_the_computation_are_refused_by_name(folder: Path, field: str, value: Any) -> None:
    change(folder, **{field: value})
    with pytest.raises(UserError, match=f"`{field}: .*which Luthier does not read"):
        read_config(folder)


def test_a_parameter_beside_which_no_adapter_can_stand_is_named(folder: Path) -> None:
    change(folder, target_parameters=["experts.gate_up_proj"])
    with pytest.raises(UserError, match="beside the parameter `experts"):
        load_adapter(build("llama"), folder)


def test_every_field_that_peft_writes_by_default_is_read(tmp_path: Path) -> None:
    """A new PEFT may add fields; while they are off they must not stand in the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(build("llama"), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert (config.rank, config.alpha) == (4, 8)


def test_other_kinds_of_adapters_are_refused(folder: Path) -> None:
    change(folder, peft_type="IA3")
    with pytest.raises(UserError, match="type 'IA3'"):
        read_config(folder)


def test_a_folder_without_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter here") as caught:
        read_config(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_torn_file_is_named(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_adapter(build("llama"), folder)


def test_an_adapter_of_another_base_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="right base model"):
        load_adapter(build("llama", intermediate_size=192), folder)
    with pytest.raises(UserError, match="right base model"):
        load_adapter(build("llama", num_hidden_layers=1), folder)


def test_base_weights_in_the_file_must_be_the_base_s(folder: Path) -> None:
    """PEFT may write the embeddings along; those of a model trained otherwise are not silently dropped."""
    tensors = load_file(folder / WEIGHTS_FILE)
    base = build("llama")
    key = "base_model.model.model.embed_tokens.weight"
    save_file(tensors | {key: base.get_input_embeddings().weight.detach()}, folder / WEIGHTS_FILE)
    load_adapter(base, folder)
    save_file(tensors | {key: torch.randn(256, 64)}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"embed_tokens.weight"):
        load_adapter(build("llama"), folder)


def test_files_are_float32_and_say_their_base(tmp_path: Path) -> None:
    model = build("gpt2").to(torch.bfloat16)
    model.config.name_or_path = "owner/base"
    apply_method(model, LoRA(rank=2), seed=0)
    write_adapter(tmp_path, model)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS_FILE).values()} == {torch.float32}
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert content["base_model_name_or_path"] == "owner/base"
    assert content["fan_in_fan_out"] is True
    assert content["target_modules"] == ["c_attn", "c_fc", "c_proj"]


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_a_merged_model_whose_head_was_untied_loads_as_it_was(family: str, tmp_path: Path) -> None:
    model = build(family, tie_word_embeddings=True)
    apply_method(model, LoRA(rank=2, modules_to_save=("embed_tokens",)), seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    tokens = torch.arange(3, 12)[None]
    before = model(input_ids=tokens).logits
    save_model(merge(model), tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=tokens, use_cache=False).logits, before)
