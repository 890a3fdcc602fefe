"""What is converted comes back bit for bit, from safetensors and from pickles, in shards, atomically, and never by running code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import luthier.models
from luthier.errors import UserError
from luthier.models.adapters.experts import LoRAExperts
from luthier.models.adapters.format import write_adapter
from luthier.models.adapters.lora import adapted_layers
from luthier.models.adapters.merge import merge as fold_in
from luthier.models.hub import fetch
from luthier.models.legacy.cache import native_home, write_original
from luthier.models.legacy.command import convert_folder
from luthier.models.legacy.convert import to_native, to_original
from luthier.models.legacy.mapping import fill, place_of
from luthier.models.legacy.names import rules_of
from luthier.models.legacy.registry import FAMILIES, family_of
from luthier.models.methods import apply_method, load_adapter
from luthier.models.policy import Policy, save_model
from luthier.recipe.schema import Freeze, LoRA
from tests.models.legacy.cases import FIXTURES, copy_of, expected, fixture, inputs, loss_of


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("model*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize("name", FIXTURES)
def test_there_and_back_is_bit_for_bit(name: str, shared: Path, tmp_path: Path) -> None:
    source, native, back = fixture(shared, name), tmp_path / "native", tmp_path / "back"
    convert_folder(str(source), native)
    convert_folder(str(native), back, original_names=True)
    original, returned = tensors(source), tensors(back)
    assert original.keys() == returned.keys()
    assert all(torch.equal(original[key], returned[key]) for key in original)
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("name", ["chatglm3", "baichuan2_7b", "internlm1", "xverse"])
def test_transformers_loads_the_native_folder_without_luthier_s_help(name: str, shared: Path, tmp_path: Path) -> None:
    source = fixture(shared, name)
    convert_folder(str(source), tmp_path / "native")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    with torch.no_grad():
        for _name, ids, mask, logits in inputs(expected(source)):
            assert (model(ids, mask).logits - logits)[mask.bool()].abs().max() <= 1e-4


@pytest.mark.parametrize("name", FIXTURES)
def test_a_merged_model_under_original_names_is_the_start_plus_the_delta(name: str, shared: Path, tmp_path: Path) -> None:
    source, out = fixture(shared, name), tmp_path / "out"
    model, values = luthier.models.load(str(source)), expected(source)
    apply_method(model, LoRA(rank=4, alpha=8), seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    with torch.no_grad():
        trained = float(loss_of(model, values))
        rules, updates = rules_of(model), _updates(model)
    save_model(fold_in(model), tmp_path / "merged")
    write_original(tmp_path / "merged", out)
    original, written = tensors(source), tensors(out)
    assert original.keys() == written.keys()
    for key, start in original.items():
        place = place_of(key, rules)
        if place is None:  # a buffer
            assert torch.equal(written[key], start), key
            continue
        parts = [updates[new] for new in (fill(pattern, place.stars) for pattern in place.rule.news) if new in updates]
        if not parts:
            assert torch.equal(written[key], start), key
        else:
            olds = [fill(pattern, place.stars) for pattern in place.rule.olds]
            update = place.rule.change.back(parts)[olds.index(key)]
            assert torch.allclose(written[key], start + update, rtol=0, atol=1e-6), key
    assert any(".experts." in name for name in updates) == (name == "deepseek_moe")
    with torch.no_grad():
        assert float(loss_of(luthier.models.load(str(out)), values)) == pytest.approx(trained, rel=1e-5)


def _updates(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the adapters add to each parameter."""
    found = {f"{name}.weight": 2.0 * layer.lora_B @ layer.lora_A for name, layer in adapted_layers(model).items()}
    for name, module in model.named_modules():
        for part, factors, _ in module.parts() if isinstance(module, LoRAExperts) else ():
            found[f"{name}.{part}"] = torch.stack([factors.difference(expert) for expert in range(factors.count)])
    return found


@pytest.mark.parametrize("name", ["chatglm3", "baichuan2_7b"])
def test_pickled_shards_are_read_and_make_the_same_model(name: str, shared: Path, tmp_path: Path) -> None:
    source = fixture(shared, name)
    pickled = copy_of(source, tmp_path / "pickled")
    whole = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    halves = [dict(list(whole.items())[0::2]), dict(list(whole.items())[1::2])]  # the parts of a rule lie in different files
    places = {}
    for number, half in enumerate(halves, 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(half, pickled / file, _use_new_zipfile_serialization=number == 1)  # the second cannot be mapped
        places |= dict.fromkeys(half, file)
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    ours, theirs = luthier.models.load(str(pickled)), luthier.models.load(str(source))
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_pickle_that_would_run_code_is_refused(shared: Path, tmp_path: Path) -> None:
    folder = copy_of(fixture(shared, "chatglm3"), tmp_path / "evil")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Evil()}, file)
    with pytest.raises(UserError, match=r"is not read|cannot be read") as caught:
        fetch(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_small_shards_have_an_index_and_hold_the_same(shared: Path, tmp_path: Path) -> None:
    source, native, back = fixture(shared, "chatglm3"), tmp_path / "native", tmp_path / "back"
    native.mkdir()
    back.mkdir()
    family = family_of(source)
    assert family is not None
    to_native(source, family, native, shard_bytes=100_000)
    assert len(list(native.glob("model-*.safetensors"))) > 3
    to_original(native, back, shard_bytes=100_000)
    original = tensors(source)
    assert all(torch.equal(original[key], value) for key, value in tensors(back).items())
    model = AutoModelForCausalLM.from_pretrained(native, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, original["transformer.output_layer.weight"])


def test_the_cache_is_keyed_by_content(shared: Path, tmp_path: Path) -> None:
    first, again = (copy_of(fixture(shared, "xverse"), tmp_path / name) for name in ("first", "again"))
    assert fetch(str(first)) == fetch(str(again))
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert fetch(str(first)) != fetch(str(again))
    copy = fetch(str(first))
    assert copy.parent == native_home()
    with pytest.raises(UserError, match="converted copy of an old checkpoint is there no longer"):
        fetch(f"{copy}-deleted")


def test_a_conversion_that_fails_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    folder = copy_of(fixture(shared, "baichuan2_7b"), tmp_path / "broken")
    whole = load_file(folder / "model.safetensors")
    save_file(whole | {"model.layers.0.something.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"`model\.layers\.0\.something\.weight` is not a tensor of this family"):
        convert_folder(str(folder), tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken"]


def test_what_is_missing_is_named(shared: Path, tmp_path: Path) -> None:
    folder = copy_of(fixture(shared, "chatglm3"), tmp_path / "part")
    whole = load_file(folder / "model.safetensors")
    del whole["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    save_file(whole, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"such as `model\.layers\.1\.mlp\.down_proj\.weight`"):
        luthier.models.load(str(folder))


def test_what_cannot_be_converted_says_so(shared: Path, tmp_path: Path) -> None:
    folder = copy_of(fixture(shared, "chatglm3"), tmp_path / "first")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", "inner_hidden_size": 16384}))
    with pytest.raises(UserError, match="the first ChatGLM-6B is another architecture"):
        fetch(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"rmsnorm": False}))
    with pytest.raises(UserError, match="`rmsnorm: False`"):
        fetch(str(folder))
    with pytest.raises(UserError, match="does not come from an old checkpoint"):
        write_original(fetch("tiny"), tmp_path / "out")
    with pytest.raises(UserError, match=r"not an old checkpoint that is known.*chatglm"):
        convert_folder(str(_plain(tmp_path)), tmp_path / "out")
    with pytest.raises(UserError, match="Did you mean `baichuan2-7b`"):
        convert_folder(str(fixture(shared, "baichuan2_7b")), tmp_path / "out", family="baichuan2-7")


def _plain(folder: Path) -> Path:
    (folder / "plain").mkdir()
    (folder / "plain" / "config.json").write_text('{"model_type": "llama"}')
    return folder / "plain"


def test_no_two_families_claim_the_same_config(shared: Path) -> None:
    for name in FIXTURES:
        config = json.loads((fixture(shared, name) / "config.json").read_text())
        assert len([family for family in FAMILIES if family.recognises(config)]) == 1, name


def test_a_family_can_be_named_where_the_config_does_not_tell(shared: Path, tmp_path: Path) -> None:
    source = fixture(shared, "baichuan2_7b")
    edited = copy_of(source, tmp_path / "edited")
    config = json.loads((edited / "config.json").read_text())
    del config["tokenizer_class"]
    (edited / "config.json").write_text(json.dumps(config))
    convert_folder(str(edited), tmp_path / "out", family="baichuan2-7b")
    model = luthier.models.load(str(tmp_path / "out"))
    with torch.no_grad():
        for _name, ids, mask, logits in inputs(expected(source)):
            assert (model(ids, mask).logits - logits)[mask.bool()].abs().max() <= 1e-4


def test_a_head_learns_with_its_raw_weight_and_is_plain_at_rest(shared: Path, tmp_path: Path) -> None:
    """Baichuan2: what is saved is a plain Llama with a folded head, and what is read back is the weight as it was trained."""
    source = fixture(shared, "baichuan2_7b")
    model = luthier.models.load(str(source))
    policy = Policy(model, apply_method(model, Freeze(layers=1, head=True), seed=0))
    values = expected(source)
    loss_of(model, values).backward()
    torch.optim.SGD(policy.trainable.parameters.values(), lr=0.1).step()
    policy.save(tmp_path)
    trained = model.lm_head.weight.detach()
    assert torch.equal(policy.read(tmp_path)["lm_head.weight"], trained)
    rest = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    assert torch.allclose(torch.linalg.vector_norm(rest, dim=1), torch.ones(len(rest)), atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert float(loss_of(plain, values)) == pytest.approx(float(loss_of(model, values)), rel=1e-6)
    write_original(tmp_path, tmp_path / "back")
    assert torch.equal(load_file(tmp_path / "back" / "model.safetensors")["lm_head.weight"], trained)


def test_an_adapter_is_folded_into_a_converted_model_as_into_any(shared: Path, tmp_path: Path) -> None:
    source = fixture(shared, "baichuan2_13b")
    model, values = luthier.models.load(str(source)), expected(source)
    apply_method(model, LoRA(rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    write_adapter(tmp_path, model)
    again = luthier.models.load(str(source))
    load_adapter(again, tmp_path)
    with torch.no_grad():
        wanted = float(loss_of(model, values))
        assert float(loss_of(fold_in(again), values)) == pytest.approx(wanted, rel=1e-5)
