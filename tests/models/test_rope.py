"""Stretched rotary positions are those of transformers from the same config, and are the same wherever the model is loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.errors import UserError
from luthier.generation.decode import context_length
from luthier.models.loading import load_model
from luthier.models.policy import Policy
from luthier.models.rope import forget_lengths, growing, reach
from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Model, RopeScaling
from tests.families import save
from tests.models.batches import ragged

CPU = torch.device("cpu")
SHORT, LONG = 32, 128
TOKENS = torch.randint(3, 256, (1, LONG), generator=torch.Generator().manual_seed(0))

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    # recipe · what published configs hold for the same · their limit
    "linear": ({}, {}, LONG),
    "dynamic": ({}, {}, SHORT),
    "yarn": ({}, {"original_max_position_embeddings": SHORT}, LONG),
    "yarn-set": (
        {"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5},
        {"original_max_position_embeddings": SHORT, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
        LONG,
    ),
    "llama3": ({}, {"original_max_position_embeddings": SHORT, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, LONG),
    "longrope": (
        {"long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]},
        {
            "original_max_position_embeddings": SHORT,
            "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0],
        },
        LONG,
    ),
}


def scaling(case: str) -> RopeScaling:
    return RopeScaling(type=case.partition("-")[0], factor=4, **CASES[case][0])  # type: ignore[arg-type]


def published(folder: Path, case: str) -> Path:
    """The model folder with the scaling written into its config by hand, as it is published."""
    _, settings, limit = CASES[case]
    config = json.loads((folder / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    config |= {"rope_theta": theta, "max_position_embeddings": limit}
    config["rope_scaling"] = {"rope_type": case.partition("-")[0], "factor": 4.0, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def logits(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    return model.eval()(tokens, use_cache=False).logits


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def stretched(folder: Path, case: str, **more: Any) -> Any:
    section = Model(path=str(folder), rope_scaling=scaling(case), **more)
    return load_model(section, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "cohere"])
def test_positions_are_those_of_transformers_from_the_same_config(family: str, case: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "base", max_position_embeddings=SHORT)
    model = stretched(folder, case)
    ours, unscaled = logits(model), logits(plain(folder))
    model.save_pretrained(tmp_path / "out")
    theirs = logits(plain(published(folder, case)))
    bound = 1e-5 * max(1.0, float(theirs.abs().max()))
    assert (ours - theirs).abs().max() <= bound
    assert (ours - unscaled).abs().max() > 100 * bound
    assert (logits(plain(tmp_path / "out")) - theirs).abs().max() <= bound


def test_dynamic_changes_nothing_in_texts_of_the_original_length(tmp_path: Path) -> None:
    folder = save("llama", tmp_path, max_position_embeddings=SHORT)
    short = TOKENS[:, :SHORT]
    assert torch.allclose(logits(stretched(folder, "dynamic"), short), logits(plain(folder), short), atol=1e-5)


def test_partly_rotated_heads_and_layers_of_two_kinds_keep_what_is_theirs(tmp_path: Path) -> None:
    folder = save("glm", tmp_path / "glm", max_position_embeddings=SHORT)
    model = stretched(folder, "yarn")
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert model.model.rotary_emb.inv_freq.shape == (4,)
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
    from transformers import Gemma3TextConfig

    from tests.families import _MODERN

    config = Gemma3TextConfig(**{**_MODERN, "max_position_embeddings": SHORT}, sliding_window=16, rope_parameters=kinds)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma3")
    found = stretched(tmp_path / "gemma3", "linear").config.rope_parameters
    assert found["full_attention"]["factor"] == 4
    assert found["sliding_attention"] == kinds["sliding_attention"]


def test_a_scaling_that_is_there_is_taken_for_the_start(tmp_path: Path) -> None:
    folder = published(save("llama", tmp_path, max_position_embeddings=SHORT), "llama3")
    section = RopeScaling(type="llama3", factor=8)
    model = load_model(Model(path=str(folder), rope_scaling=section), dtype=torch.float32, device=CPU)
    assert model.config.rope_parameters["original_max_position_embeddings"] == SHORT
    assert model.config.max_position_embeddings == 8 * SHORT
    content = json.loads((folder / "config.json").read_text())
    assert (reach(content, None), reach(content, section)) == (LONG, 8 * SHORT)


def test_the_reach_is_the_original_length_times_the_factor(tmp_path: Path) -> None:
    content = {"max_position_embeddings": SHORT}
    assert all(reach(content, scaling(case)) == LONG for case in CASES)
    assert reach(content, RopeScaling(type="yarn", factor=2, original_length=20)) == 40
    assert reach({"max_position_embeddings": SHORT, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, None) == 64
    assert reach({"n_positions": 1024}, None) == 1024
    assert reach({"model_type": "bloom"}, None) is None
    folder = save("llama", tmp_path, max_position_embeddings=SHORT)
    for case in CASES:
        assert context_length(stretched(folder, case)) == LONG


@pytest.mark.parametrize("case", ["dynamic", "longrope"])
def test_what_is_computed_does_not_depend_on_company_or_on_what_came_before(case: str, tmp_path: Path) -> None:
    folder = save("llama", tmp_path, max_position_embeddings=SHORT)
    lengths = [100, 20, 60, 32, 33]
    batch = ragged(lengths)
    policy = Policy(stretched(folder, case))
    with torch.no_grad():
        alone = [
            stretched(folder, case).base_model(part[None], use_cache=False).last_hidden_state[0]
            for part in batch.tokens.split(lengths)
        ]
        for packing in (True, False):
            found = policy.hidden(batch, packing=packing)
            assert (found - torch.cat(alone)).abs().max() <= 1e-5


def test_lengths_are_forgotten(tmp_path: Path) -> None:
    folder = save("llama", tmp_path, max_position_embeddings=SHORT)
    model = stretched(folder, "dynamic")
    middle = TOKENS[:, :60]
    expected = logits(model, middle)
    logits(model, TOKENS)
    assert (logits(model, middle) - expected).abs().max() > 1e-3  # transformers keeps the longer text's positions
    forget_lengths(growing(model))
    assert torch.equal(logits(model, middle), expected)


@pytest.mark.parametrize(
    ("family", "case", "changes", "said"),
    [
        ("gpt2", "yarn", {}, "`gpt2` has no rotary positions"),
        ("bloom", "linear", {}, "`bloom` has no rotary positions"),
        ("llama", "longrope", {"long_factor": (1.0, 2.0)}, "long_factor: 2 factors, and a head has 8 pairs"),
    ],
)
def test_what_cannot_be_stretched_is_said(family: str, case: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    section = RopeScaling(**{**scaling(case).model_dump(), **changes})
    with pytest.raises(UserError, match=said):
        load_model(Model(path=str(save(family, tmp_path)), rope_scaling=section), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{type: yarn}", "`model.rope_scaling.factor` is missing"),
        ("{factor: 2}", "`model.rope_scaling.type` is missing"),
        ("{type: yarn, factor: 1}", "should be greater than 1"),
        ("{type: ntk, factor: 2}", "should be one of `linear`"),
        ("{type: linear, factor: 2, beta_fast: 16}", "`model.rope_scaling.beta_fast` belongs to yarn, not to `linear`"),
        ("{type: longrope, factor: 2}", "`model.rope_scaling.long_factor` is missing"),
        ("{type: yarn, factr: 2}", "unknown key `model.rope_scaling.factr`. Did you mean `model.rope_scaling.factor`"),
    ],
)
def test_mistakes_in_the_recipe_are_told_with_their_line(written: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"model:\n  path: tiny\n  rope_scaling: {written}\ndata: {{train: a.json}}\n")
    with pytest.raises(UserError, match=rf"r\.yaml:3: .*{said}"):
        load_recipe(file)
