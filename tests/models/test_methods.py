"""Methods train what they say, and nothing else; names that fit nothing are the user's mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.errors import UserError
from luthier.models.adapters.format import write_adapter
from luthier.models.methods import Trainable, apply_method
from luthier.models.mixture import fused_parameters, mixtures
from luthier.recipe.schema import Freeze, Full, LoRA
from tests.families import CONFIGS, MATRIX, MIXTURES, build


def trained_modules(trained: Trainable) -> set[str]:
    return {name.rpartition(".")[0] for name in trained.parameters}


def test_full_trains_everything() -> None:
    model = build("llama")
    trained = apply_method(model, Full(), seed=0)
    assert trained.count == trained.total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", MATRIX)
def test_freezing_trains_the_last_or_the_first_layers(family: str) -> None:
    for layers, number in ((1, "1"), (-1, "0")):
        names = apply_method(build(family), Freeze(layers=layers), seed=0).parameters
        assert names
        assert all(f".{number}." in name for name in names)


def test_freezing_by_module_embeddings_and_head() -> None:
    names = apply_method(build("llama"), Freeze(layers=0, modules=("q_proj", "norm")), seed=0).parameters
    assert set(names) == {*(f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)), "model.norm.weight"}
    names = apply_method(build("llama"), Freeze(layers=0, embeddings=True, head=True), seed=0).parameters
    assert set(names) == {"model.embed_tokens.weight", "lm_head.weight"}
    names = apply_method(build("gpt2"), Freeze(layers=0, head=True), seed=0).parameters
    assert set(names) == {"transformer.wte.weight"}, "a tied head is the embeddings"


@pytest.mark.parametrize("family", CONFIGS)
def test_all_linear_is_every_linear_layer_but_the_head_and_the_experts(family: str) -> None:
    model = build(family)
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head}
    fused = {f"{mixture.name}.adapters.{name}" for mixture in mixtures(model) for name in fused_parameters(mixture.experts)}
    trained = apply_method(model, LoRA(rank=2), seed=0)
    assert trained_modules(trained) == linear | fused
    assert bool(fused) == (family in MIXTURES)
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained.parameters)


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed() -> None:
    tokens = torch.arange(3, 12)[None]
    first, again, other = build("llama"), build("llama"), build("llama")
    before = first(input_ids=tokens).logits
    one, two, three = (apply_method(model, LoRA(rank=2), seed=seed) for model, seed in ((first, 1), (again, 1), (other, 2)))
    assert torch.equal(first(input_ids=tokens).logits, before)
    assert list(one.parameters) == list(two.parameters)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters.values(), two.parameters.values(), strict=True))
    key = "model.layers.0.mlp.up_proj.lora_A"
    assert not torch.equal(one.parameters[key], three.parameters[key])
    bound = 64**-0.5
    assert one.parameters[key].abs().max() <= bound
    assert one.parameters[key].std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_an_adapter_is_continued_with_its_own_settings(tmp_path: Path) -> None:
    model = build("llama")
    first = apply_method(model, LoRA(rank=3, alpha=5, target=("q_proj",)), seed=0)
    for parameter in first.parameters.values():
        nn.init.normal_(parameter)
    write_adapter(tmp_path, model)
    on = build("llama")
    second = apply_method(on, LoRA(rank=8, dropout=0.1), seed=0, adapter=tmp_path)
    assert list(second.parameters) == list(first.parameters)
    assert all(torch.equal(second.parameters[name], value) for name, value in first.parameters.items())
    assert on.model.layers[0].self_attn.q_proj.dropout == 0.1
    assert "rank 3, alpha 5" in second.notes[0]
    merged = apply_method(whole := build("llama"), Full(), seed=0, adapter=tmp_path)
    assert merged.count == merged.total
    tokens = torch.arange(3, 12)[None]
    assert torch.allclose(whole(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(target=("q_porj",)), "called `q_porj`. Did you mean `q_proj`"),
        (LoRA(target=("embed_tokens",)), "`model.embed_tokens` is not a linear layer"),
        (LoRA(modules_to_save=("lm_haed",)), "Did you mean `lm_head`"),
        (LoRA(target=("lm_head",), dropout=0.1), "without dropout only"),
        (Freeze(layers=3), "2 layers, not 3"),
        (Freeze(layers=0), "nothing is trained"),
        (Freeze(layers=0, modules=("mpl",)), "Did you mean `mlp`"),
    ],
)
def test_mistakes_are_named(method: LoRA | Freeze, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        apply_method(build("llama"), method, seed=0)


def test_layers_are_chosen_by_expression_number_and_exclusion() -> None:
    names = trained_modules(apply_method(build("llama"), LoRA(rank=2, target=r".*\.1\..*(q|up)_proj"), seed=0))
    assert names == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    names = trained_modules(apply_method(build("llama"), LoRA(rank=2, layers=(0,), exclude=("down_proj",)), seed=0))
    assert len(names) == 6
    assert all(".layers.0." in name and "down_proj" not in name for name in names)
    with pytest.raises(UserError, match="matches"):
        apply_method(build("llama"), LoRA(rank=2, target="q.*z"), seed=0)


def test_ranks_and_alphas_by_layer() -> None:
    model = build("llama")
    apply_method(
        model, LoRA(rank=4, alpha=8, rank_pattern={"v_proj": 2, r"layers\.1\..*": 6}, alpha_pattern={"v_proj": 1}), seed=0
    )
    layer = model.model.layers
    assert (layer[0].self_attn.q_proj.rank, layer[0].self_attn.v_proj.rank, layer[1].self_attn.q_proj.rank) == (4, 2, 6)
    assert layer[0].self_attn.v_proj.scaling == 0.5


def test_lora_plus_speeds_up_b_and_the_magnitudes() -> None:
    trained = apply_method(build("llama"), LoRA(rank=2, dora=True, loraplus_ratio=8, modules_to_save=("norm",)), seed=0)
    faster = {name for name in trained.parameters if trained.rates.get(name, 1.0) == 8}
    assert faster == {name for name in trained.parameters if not name.endswith("lora_A")}
    assert not apply_method(build("llama"), LoRA(rank=2), seed=0).rates
