"""Qwen, the first: long texts as in training, its tokenizer, and its checkpoints in four bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unicodedata import normalize

import pytest
import torch
from safetensors.torch import load_file

import luthier.models
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.errors import UserError
from luthier.export.merge import merge
from luthier.models.adapters.format import write_adapter
from luthier.models.hub import fetch
from luthier.models.legacy.cache import write_native
from luthier.models.legacy.command import convert_folder
from luthier.models.legacy.qwen import QWEN
from luthier.models.methods import apply_method
from luthier.recipe.schema import LoRA
from tests.models.legacy.cases import copy_of, expected, fixture
from tests.models.legacy.gptq import in_four_bits, meant


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    return fixture(shared, "qwen1")


def test_beyond_its_context_it_computes_as_in_training(source: Path) -> None:
    values = expected(source)
    with torch.no_grad():
        logits = luthier.models.load(str(source))(values["long.input_ids"]).logits
    assert (logits - values["long_train_mode.logits"]).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def tokenizer(source: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    place = tmp_path_factory.mktemp("tokenizer")
    folder = copy_of(source, place / "Qwen-1_8B-Chat")
    for name in ("qwen.tiktoken", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(shared / "data" / "tokenizers" / "qwen" / name, folder / name)
    write_native(folder, QWEN, place / "native")
    return load_tokenizer(place / "native")


def test_its_ids_are_those_of_the_original(tokenizer: Tokenizer, shared: Path) -> None:
    vectors = json.loads((shared / "data" / "tokenizers" / "qwen" / "vectors.json").read_text(encoding="utf-8"))["vectors"]
    for vector in vectors:
        if (
            normalize("NFC", vector["text"]) == vector["text"] and "<|" not in vector["text"]
        ):  # the vectors were made of bare ranks
            assert tokenizer.encode(vector["text"]).ids.tolist() == vector["ids"], vector["text"]
    text = "<|im_start|>user\n<|extra_0|><|extra_204|><|im_end|><|endoftext|>"
    assert tokenizer.encode(text).ids.tolist() == [151644, 872, 198, 151646, 151850, 151645, 151643]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (151643, 151643, None)


@pytest.mark.parametrize("text", ["cafe\u0301 re\u0301sume\u0301", "\u1112\u1161\u11ab \u212b\u2126", "q\u0323\u0307 \u0958a"])
def test_text_is_composed_first_and_offsets_point_into_the_text_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    found = tokenizer.encode(text)
    assert found.ids.tolist() == tokenizer.encode(normalize("NFC", text)).ids.tolist()
    places = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    assert set(range(len(text))) == {place for start, end in places for place in range(start, end)}
    for id_, (start, end) in zip(found.ids.tolist(), places, strict=True):
        piece = tokenizer.decode([id_])
        assert "\ufffd" in piece or piece in normalize("NFC", text[start:end])


@pytest.fixture(scope="module")
def quantised(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in AutoGPTQ's layout, and a plain one with the very weights that it stands for."""
    place = tmp_path_factory.mktemp("quantised")
    packed, plain = copy_of(source, place / "Qwen-1_8B-Chat-Int4"), copy_of(source, place / "plain")
    in_four_bits(source, packed, plain)
    return packed, plain


def test_four_bits_are_cut_where_they_are_packed_and_come_back(quantised: tuple[Path, Path], tmp_path: Path) -> None:
    packed, _plain = quantised
    convert_folder(str(packed), tmp_path / "native")
    native, original = load_file(tmp_path / "native" / "model.safetensors"), load_file(packed / "model.safetensors")
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert (config["quantization_config"]["bits"], config["dtype"]) == (4, "float32")
    layer = {part: original[f"transformer.h.0.attn.c_attn.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
    for number, name in enumerate("qkv"):
        part = {key: native[f"model.layers.0.self_attn.{name}_proj.{key}"] for key in layer}
        assert torch.equal(meant(part), meant(layer)[64 * number : 64 * (number + 1)])
    convert_folder(str(tmp_path / "native"), tmp_path / "back", original_names=True)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


def test_four_bits_are_a_frozen_base(quantised: tuple[Path, Path], source: Path, tmp_path: Path) -> None:
    packed, plain = quantised
    model, dense = luthier.models.load(str(packed), dtype="float32"), luthier.models.load(str(plain), dtype="float32")
    ids = expected(source)["single.2.input_ids"]
    with torch.no_grad():
        assert (model(ids).logits - dense(ids).logits).abs().max() <= 1e-4
    trained = apply_method(model, LoRA(rank=2, target=("c_attn", "w1")), seed=0)
    assert {name.rpartition(".")[2] for name in trained.parameters} == {"lora_A", "lora_B"}
    for name, parameter in trained.parameters.items():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        adapted = model(ids).logits
    write_adapter(tmp_path / "adapter", model)
    out = merge(str(packed), tmp_path / "out", adapter=tmp_path / "adapter", original_names=True)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    with torch.no_grad():
        assert (luthier.models.load(str(out), dtype="float32")(ids).logits - adapted).abs().max() <= 1e-3


def test_a_qwen_that_sees_is_refused(source: Path, tmp_path: Path) -> None:
    folder = copy_of(source, tmp_path / "Qwen-VL")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"visual": {"image_size": 448}}))
    with pytest.raises(UserError, match="`qwen` is a model that takes images") as caught:
        fetch(str(folder))
    assert "\n" not in str(caught.value)
