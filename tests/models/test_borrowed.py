"""Methods that PEFT implements: the numbers are PEFT's, in both directions, and nothing else of the model moves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from luthier.data.batch import Batch
from luthier.errors import UserError
from luthier.generation.cache import RowCache
from luthier.generation.decode import context_length
from luthier.models.adapters import borrowed
from luthier.models.adapters.merge import merge
from luthier.models.checkpointing import set_checkpointing
from luthier.models.methods import apply_method, load_adapter
from luthier.models.policy import Policy
from luthier.recipe.schema import (
    BOFT,
    IA3,
    OFT,
    LlamaAdapter,
    LoRA,
    NormTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
)
from tests.families import build
from tests.method_table import in_plain, logits_apart, loss_of
from tests.models.batches import ragged

PREFIXED: dict[str, Any] = {
    "prefix": PrefixTuning(pre_seq_len=6, projection_size=24),
    "p_tuning": PTuning(pre_seq_len=6),
    "prompt": PromptTuning(pre_seq_len=6),
}
MERGED: dict[str, Any] = {
    "ia3": IA3(),
    "oft": OFT(block_size=16),
    "boft": BOFT(block_size=8),
    "layernorm": NormTuning(),
    "vera": VeRA(rank=16),
}
ALL: dict[str, Any] = PREFIXED | MERGED | {"llama_adapter": LlamaAdapter(adapter_len=4, adapter_layers=1)}
LENGTHS = (9, 4, 17, 1)


def changed(family: str, method: Any) -> Policy:
    """A policy whose trained parameters are as after some training."""
    model = build(family)
    policy = Policy(model, apply_method(model, method, seed=1))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch as a right-padded rectangle of tokens, and its mask."""
    rows = batch.tokens.split(torch.diff(batch.cu_seqlens).tolist())
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return tokens, torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)


def loss_in_peft(theirs: Any, batch: Batch) -> Tensor:
    """The mean loss that PEFT's own model gives the same batch, padded."""
    tokens, mask = padded(batch)
    logits = theirs(input_ids=tokens, attention_mask=mask).logits[:, -tokens.shape[1] :]
    targets = tokens.masked_fill(mask == 0, -100)[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    policy, batch = changed("llama", ALL[name]), ragged(LENGTHS)
    policy.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in PREFIXED:  # PEFT trains no prefix that it has loaded
            theirs = peft.get_peft_model(build("llama"), borrowed.config_of(policy.model)).eval()
            theirs.prompt_encoder["default"].load_state_dict(getattr(policy.model, borrowed.ENCODER).state_dict())
        else:
            theirs = peft.PeftModel.from_pretrained(build("llama"), str(tmp_path), is_trainable=True).eval()
    mine, expected = loss_of(policy, batch), loss_in_peft(theirs, batch)
    assert abs(mine.item() - expected.item()) <= 1e-5
    mine.backward()
    expected.backward()
    gradients = {key.replace(".default", ""): p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    for key, parameter in policy.trainable.parameters.items():
        found = key.replace(".default", "")
        other = gradients[f"base_model.model.{found}" if f"base_model.model.{found}" in gradients else found]
        assert torch.linalg.norm(parameter.grad - other) <= 1e-4 * torch.linalg.norm(other), key


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "bloom", "falcon", "glm"])
@pytest.mark.parametrize("name", ["p_tuning", "prompt"])
def test_a_prefix_is_read_by_every_family_as_peft_reads_it(name: str, family: str, tmp_path: Path) -> None:
    policy, batch = changed(family, PREFIXED[name]), ragged((25, 3))
    policy.save(tmp_path)
    with torch.no_grad():
        ours = policy.head.logits(policy.hidden(batch, packing=True))
    torch.testing.assert_close(ours, logits_apart(in_plain(family, tmp_path), batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PREFIXED)
def test_a_prefix_is_said_to_be_padded(name: str) -> None:
    policy = changed("llama", PREFIXED[name])
    assert not policy.isolation.ok
    assert "padded (each segment begins with its own prefix of 6 learnt positions)" in policy.describe()


@pytest.mark.parametrize("name", ["ia3", "layernorm", "llama_adapter"])
def test_what_leaves_rows_alone_is_packed(name: str) -> None:
    policy, batch = changed("llama", ALL[name]), ragged(LENGTHS)
    assert policy.isolation.ok
    with torch.no_grad():
        packed, apart = (policy.hidden(batch, packing=packing) for packing in (True, False))
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_a_prefix_may_be_computed_twice(mode: Any) -> None:
    gradients = []
    for each in ("none", mode):
        policy = changed("llama", PREFIXED["p_tuning"])
        set_checkpointing(policy.model, each)
        policy.model.train()
        loss_of(policy, ragged(LENGTHS)).backward()
        gradients.append(policy.trainable.parameters["prompt_encoder.embedding.weight"].grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
@pytest.mark.parametrize("name", ["p_tuning", "prompt"])
@torch.no_grad()
def test_rows_in_any_company_are_decoded_behind_the_prefix(name: str, family: str, tmp_path: Path) -> None:
    policy = changed(family, PREFIXED[name])
    policy.save(tmp_path)
    theirs = in_plain(family, tmp_path)
    rows = [list(range(3, 3 + length)) for length in (2, 30, 11, 5)]
    cache = RowCache(policy.model.eval())

    def check(logits: Tensor, live: list[int]) -> None:
        for row, got in zip(live, logits, strict=True):
            tokens = torch.tensor([rows[row]])
            expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]
            torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)

    def extend(live: list[int]) -> None:
        for row in live:
            rows[row].append(7 + row)
        check(cache.extend([7 + row for row in live]), live)

    check(cache.add([rows[0], rows[2]]), [0, 2])
    extend([0, 2])
    check(cache.add([rows[1]]), [1])
    extend([0, 2, 1])
    cache.keep([0, 2])
    check(cache.add([rows[3]]), [3])
    extend([0, 1, 3])


def test_the_prefix_takes_its_part_of_the_context() -> None:
    assert context_length(changed("llama", PREFIXED["p_tuning"]).model) == 512 - 6


@pytest.mark.parametrize("name", ALL)
def test_what_is_saved_comes_back(name: str, tmp_path: Path) -> None:
    policy, batch = changed("llama", ALL[name]), ragged(LENGTHS)
    masters = {key: value.detach() * 1.01 for key, value in policy.trainable.parameters.items()}
    policy.save(tmp_path, masters)
    again = policy.read(tmp_path)
    assert list(again) == list(masters)
    assert all(torch.equal(again[key], value) for key, value in masters.items())
    policy.load(tmp_path)
    load_adapter(fresh := build("llama"), tmp_path)
    with torch.no_grad():
        here, there = (each.head.logits(each.hidden(batch, packing=True)) for each in (policy, Policy(fresh)))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MERGED)
def test_merging_gives_the_plain_model_that_computes_the_same(name: str, tmp_path: Path) -> None:
    policy, batch = changed("llama", MERGED[name]), ragged(LENGTHS)
    before = logits_apart(policy.model, batch)
    plain = merge(policy.model)
    assert set(plain.state_dict()) == set(build("llama").state_dict())
    assert borrowed.holder_of(plain) is None
    torch.testing.assert_close(logits_apart(plain, batch), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*PREFIXED, "llama_adapter"])
def test_what_no_weight_can_hold_is_not_merged(name: str) -> None:
    with pytest.raises(UserError, match="cannot be merged: no weight of the model can hold it"):
        merge(changed("llama", ALL[name]).model)


@pytest.mark.parametrize("name", ["ia3", "p_tuning", "prompt", "llama_adapter", "layernorm"])
def test_switched_off_it_is_the_base_model(name: str) -> None:
    policy, batch = changed("llama", ALL[name]), ragged(LENGTHS)
    base, tuned = Policy(build("llama")), []
    with torch.no_grad():
        tuned.append(policy.hidden(batch, packing=False))
        with borrowed.switched_off(policy.model):
            torch.testing.assert_close(policy.hidden(batch, packing=False), base.hidden(batch, packing=False), atol=1e-5, rtol=0)
        tuned.append(policy.hidden(batch, packing=False))
    assert torch.equal(*tuned)


def test_first_values_depend_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    one = apply_method(build("llama"), PTuning(pre_seq_len=3), seed=1)
    torch.manual_seed(8)
    two, three = (apply_method(build("llama"), PTuning(pre_seq_len=3), seed=seed) for seed in (1, 2))
    values = [trained.parameters["prompt_encoder.embedding.weight"] for trained in (one, two, three)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_training_goes_on_from_a_projected_prefix(tmp_path: Path) -> None:
    policy = changed("llama", PREFIXED["prefix"])
    policy.save(tmp_path)
    names = apply_method(on := build("llama"), PREFIXED["prefix"], seed=5, adapter=tmp_path).parameters
    assert all(torch.equal(value, policy.trainable.parameters[name]) for name, value in names.items())
    assert len(names) == 5
    (tmp_path / borrowed.ENCODER_FILE).unlink()  # as PEFT would have left it
    names = apply_method(on := build("llama"), PREFIXED["prefix"], seed=5, adapter=tmp_path).parameters
    assert list(names) == ["prompt_encoder.embedding.weight"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_virtual_tokens"] == 6
    assert Policy(on).isolation.ok is False


def test_a_file_says_which_layers_it_found(tmp_path: Path) -> None:
    changed("qwen3", IA3()).save(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["down_proj", "k_proj", "v_proj"]
    assert settings["feedforward_modules"] == ["down_proj"]
    assert settings["inference_mode"] is True
    changed("qwen3", NormTuning()).save(tmp_path / "norms")
    named = json.loads((tmp_path / "norms" / "adapter_config.json").read_text())["target_modules"]
    assert named == ["input_layernorm", "k_norm", "norm", "post_attention_layernorm", "q_norm"]


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("llama", IA3(target=("q_porj",)), "called `q_porj`. Did you mean `q_proj`"),
        ("llama", IA3(target=("q_proj",), feedforward=("down_proj",)), "`down_proj` is not in `method.target`"),
        ("llama", OFT(target=("lm_head",)), "none works on the output head"),
        ("llama", LlamaAdapter(adapter_layers=3), "2 layers, not 3"),
        ("llama", BOFT(block_size=7), "must be divisible"),
        ("llama", BOFT(butterfly_factors=2), "CUDA kernel"),
        ("llama", NormTuning(target=("nrom",)), "Did you mean `norm`"),
        ("qwen3", LlamaAdapter(), "Unsupported model type"),
        ("gpt2", BOFT(), "not supported"),
    ],
)
def test_mistakes_are_one_line(family: str, method: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        apply_method(build(family), method, seed=0)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_kind_is_told(tmp_path: Path) -> None:
    changed("llama", IA3()).save(tmp_path)
    with pytest.raises(UserError, match="an adapter of type IA3, and `method` trains PREFIX_TUNING"):
        apply_method(build("llama"), PTuning(), seed=0, adapter=tmp_path)
    with pytest.raises(UserError, match="an adapter of type 'IA3'"):
        apply_method(build("llama"), LoRA(), seed=0, adapter=tmp_path)
    changed("llama", PREFIXED["p_tuning"]).save(tmp_path / "prefix")
    with pytest.raises(UserError, match="Is it the right base model"):
        load_adapter(build("llama", num_hidden_layers=3), tmp_path / "prefix")
