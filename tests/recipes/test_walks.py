"""The recipes that follow published walks keep their hyper-parameters, and run as they stand on a small model of their family."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.export.merge import merge
from luthier.models.catalog import get
from luthier.recipe.load import load_recipe
from luthier.recipe.schema import LoRA, PTuning
from luthier.recipe.shipped import find_shipped
from tests.chat_folders import model_folder, write_tokenizer
from tests.models.legacy.cases import copy_of, fixture
from tests.models.legacy.gptq import in_four_bits

WALKS: dict[str, dict[str, Any]] = {
    "llama2/qlora": {"rank": 64, "alpha": 16, "dropout": 0.1, "bits": 4, "rate": 2e-4, "epochs": 1, "batch": 4},
    "llama2/int8": {"rank": 8, "alpha": 32, "dropout": 0.05, "bits": 8, "rate": 1e-4, "epochs": 3, "batch": 4},
    "internlm2.5/qlora": {"rank": 64, "alpha": 16, "dropout": 0.1, "bits": 4, "rate": 2e-4, "epochs": 3, "batch": None},
    "chatglm3/lora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": None, "rate": 5e-5, "epochs": 3, "batch": 1},
    "chatglm3/qlora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": 4, "rate": 5e-5, "epochs": 3, "batch": 16},
    "qwen1/lora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": None, "rate": 5e-5, "epochs": 1, "batch": 32},
    "qwen1/qlora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": None, "rate": 5e-5, "epochs": 1, "batch": 32},
    "qwen1.5/lora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": None, "rate": 5e-5, "epochs": 3, "batch": 16},
    "baichuan2/lora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": None, "rate": 5e-5, "epochs": 1, "batch": 32},
    "baichuan2/qlora": {"rank": 8, "alpha": 16, "dropout": 0, "bits": 4, "rate": 5e-5, "epochs": 1, "batch": 32},
}
"""Recipe → what its walk says."""
FIXTURES = {
    "llama2/qlora": "llama",
    "llama2/int8": "llama",
    "qwen1.5/lora": "qwen3",
    "internlm2.5/qlora": "internlm2",
    "chatglm3/lora": "chatglm3",
    "chatglm3/qlora": "chatglm3",
    "qwen1/lora": "qwen1",
    "qwen1/qlora": "qwen1 in four bits",
    "baichuan2/lora": "baichuan2_7b",
    "baichuan2/qlora": "baichuan2_7b",
}
"""Recipe → a small model of its family: one of ours, or an old checkpoint of the reference data."""
NATIVE = ("llama", "qwen3")
IN_FOUR_BITS = " in four bits"
"""Behind the name of an old checkpoint: as GPTQ stores it."""
SLOW = [name if name in ("llama2/qlora", "chatglm3/lora") else pytest.param(name, marks=pytest.mark.slow) for name in FIXTURES]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"instruction": f"q{i}", "output": f"a{i % 7}"} for i in range(40)]))
    return file


def small(family: str, folder: Path, request: pytest.FixtureRequest) -> Path:
    """A model folder of the family, with a tokenizer."""
    if family in NATIVE:
        return model_folder(family, folder)
    source = fixture(request.getfixturevalue("shared"), family.removesuffix(IN_FOUR_BITS))
    copy_of(source, folder)
    if family.endswith(IN_FOUR_BITS):
        in_four_bits(source, folder, copy_of(source, folder.with_name("plain")))
    return write_tokenizer(folder, None)


def overrides(model: Path, rows: Path, *more: str) -> list[str]:
    """What makes a walk fit a small model on a CPU: its folder, short rows, no half precision, few steps."""
    return [
        f"model.path={model}",
        f"data.train={rows}",
        "data.max_length=40",
        "data.template=plain",
        "train.precision=fp32",
        "train.max_steps=4",
        "checkpoint.every=2",
        "train.log_every=1",
        "report_to=[]",
        *more,
    ]


@pytest.mark.parametrize("name", WALKS)
def test_the_hyper_parameters_are_those_of_the_walk(name: str) -> None:
    recipe = load_recipe(find_shipped(name))
    method, train, quantization = recipe.method, recipe.train, recipe.model.quantization
    assert isinstance(method, LoRA)
    batch = train.batch_size or (train.per_device_batch_size or 0) * (train.gradient_accumulation_steps or 0) or None
    found = {"rank": method.rank, "alpha": method.alpha, "dropout": method.dropout, "rate": train.learning_rate}
    found |= {"epochs": train.epochs, "bits": quantization.bits if quantization else None, "batch": batch}
    assert found == WALKS[name]
    assert get(recipe.model.path).kind == "chat"


def test_internlm_packs_2048_tokens_a_step_and_answers_every_500() -> None:
    recipe = load_recipe("internlm2.5/qlora")
    assert (recipe.data.max_length, recipe.train.batch_tokens, recipe.data.packing) == (2048, 2048, True)
    assert (recipe.evaluate.samples.every, recipe.checkpoint.every, recipe.checkpoint.keep) == (500, 500, 2)
    assert len(recipe.evaluate.samples.prompts) == 2


def test_chatglm_learns_128_prefixes_in_3000_steps_and_saves_every_500() -> None:
    recipe = load_recipe("chatglm3/ptuning")
    assert isinstance(recipe.method, PTuning)
    assert (recipe.method.pre_seq_len, recipe.method.prefix_projection) == (128, False)
    assert (recipe.train.max_steps, recipe.train.learning_rate, recipe.checkpoint.every) == (3000, 5e-5, 500)


@pytest.mark.parametrize("name", SLOW)
def test_a_walk_runs_on_a_small_model_of_its_family_and_is_merged(
    name: str, rows: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    family = FIXTURES[name]
    model = small(family, tmp_path / "model", request)
    # NF4 needs inputs in blocks of 64, which the feed-forward layers of the fixtures are not made of.
    narrow = ["model.quantization.skip=[down_proj]"] if WALKS[name]["bits"] == 4 and family not in NATIVE else []
    more = [*narrow, "train.batch_tokens=64", "train.micro_batch_tokens=64"] if WALKS[name]["batch"] is None else narrow
    if load_recipe(name).evaluate.samples.prompts:
        more.append("evaluate.samples={every: 2, prompts: [q1], max_new_tokens: 4}")
    run = luthier.train(name, overrides=overrides(model, rows, *more), name="walk", progress=False)
    losses = [record["loss"] for record in run.metrics() if "loss" in record]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    # Onto the base as it was rounded, so that the merged model is the one that was trained.
    out = merge("walk", tmp_path / "merged", onto="quantised" if WALKS[name]["bits"] else "base")
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()(tokens).logits
        tuned = luthier.load(run).model(tokens).logits
    bound = 0.1 if WALKS[name]["bits"] == 8 else 1e-3  # LLM.int8 rounds the inputs of its layers, too
    assert (merged - tuned).abs().max() <= bound * max(1, float(tuned.abs().max()))


def test_prefixes_are_saved_asked_on_the_way_and_learnt_further(
    rows: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = small("chatglm3", tmp_path / "model", request)
    more = ["method.pre_seq_len=8", "evaluate.samples.prompts=[]"]
    run = luthier.train("chatglm3/ptuning", overrides=overrides(model, rows, *more), name="walk", progress=False)
    assert list(run.folder.checkpoints()) == [2, 4]
    assert isinstance(luthier.load(run, checkpoint=2).chat("q1", max_new_tokens=4), str)
    further = luthier.resume("walk", overrides=["train.max_steps=6"], progress=False)
    assert len([record for record in further.metrics() if "loss" in record]) == 6
