"""A merged folder is the base with its adapter, in any other tool's hands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier import UserError
from luthier.cli.app import run
from luthier.export.merge import merge
from luthier.export.merge_check import compared
from luthier.models.policy import save_model
from tests.chat_folders import TEMPLATE, adapter_folder, model_folder, write_tokenizer
from tests.families import build
from tests.workspace import Workspace

TOKENS = torch.tensor([[5, 9, 200, 17, 3, 88, 41, 250]])
FAMILIES = ("llama", "gpt2", "bloom", "gemma2", "mixtral", "granite", "qwen3", "glm")


@torch.no_grad()
def logits(folder: Path, adapter: Path | None = None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()(TOKENS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_base_with_adapter(family: str, tmp_path: Path) -> None:
    base = model_folder(family, tmp_path / "base")
    adapter = adapter_folder(family, tmp_path / "adapter", base)
    out = merge(base, tmp_path / "out", adapter=adapter)
    expected = logits(base, adapter)
    assert (expected - logits(base)).abs().max() > 0.05
    assert (logits(out) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    for (name, theirs), (_, mine) in zip(peft.state_dict().items(), ours.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}, {"modules_to_save": ("embed_tokens", "lm_head")}])
def test_merged_equals_base_with_other_adapters(settings: dict[str, object], tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base, **settings)
    assert (logits(merge(adapter, tmp_path / "out")) - logits(base, adapter)).abs().max() <= 2e-5


def test_the_folder_is_ordinary_and_whole(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base)
    out = merge(base, tmp_path / "deep" / "out", adapter=adapter, max_shard_size="100KB", dtype="bfloat16")
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) < 110_000
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["use_cache"] is True
    assert [path.name for path in out.parent.iterdir()] == ["out"], "a temporary folder is left"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("Hello 你好").input_ids == AutoTokenizer.from_pretrained(base)("Hello 你好").input_ids
    card = (out / "README.md").read_text()
    assert "base model: base" in card
    assert "dtype: bfloat16" in card
    assert str(tmp_path) not in card
    half, full = logits(out), logits(base, adapter)
    assert (half - full).abs().max() < 0.05 * full.abs().max()


def test_float32_sums_are_rounded_once(tmp_path: Path) -> None:
    """bf16 base + small update: merged in float32 the error is one rounding of the sum."""
    base = write_tokenizer(tmp_path / "base")
    save_model(build("llama").bfloat16(), base)
    adapter = adapter_folder("llama", tmp_path / "adapter", base)
    exact = merge(base, tmp_path / "exact", adapter=adapter, dtype="float32")
    same = merge(base, tmp_path / "same", adapter=adapter)
    wide = AutoModelForCausalLM.from_pretrained(exact, dtype="auto").state_dict()
    narrow = AutoModelForCausalLM.from_pretrained(same, dtype="auto").state_dict()
    assert {value.dtype for value in narrow.values()} == {torch.bfloat16}
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)


def run_folder(path: Path, recipe: str) -> Path:
    """What a run leaves behind, as far as an export reads it."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "status.json").write_text('{"state": "done"}')
    (path / "recipe.yaml").write_text(recipe)
    return path


def test_a_run_is_its_final_weights_or_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model_folder("qwen3", tmp_path / "base", template=None)
    recipe = f"model: {base}\ndata: {{train: [a.json], template: qwen}}\nmethod: {{type: lora, rank: 4}}\n"
    run = run_folder(tmp_path / "runs" / "first", recipe)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing yet"):
        merge("first", tmp_path / "none")
    early = adapter_folder("qwen3", run / "checkpoints" / "step-000005", base, rslora=True)
    assert torch.allclose(logits(merge("first", tmp_path / "last")), logits(base, early), atol=1e-5)
    final = adapter_folder("qwen3", run / "final", base)
    assert torch.allclose(logits(merge("first", tmp_path / "out")), logits(base, final), atol=1e-5)
    assert torch.allclose(logits(merge(run, tmp_path / "out5", checkpoint=5)), logits(base, early), atol=1e-5)
    with pytest.raises(UserError, match="no checkpoint 7"):
        merge("first", tmp_path / "out7", checkpoint=7)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "<|im_start|>" in tokenizer.chat_template, "the template that the run learnt with"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# first" in card
    assert "method: lora" in card


def test_a_fully_tuned_run_is_its_own_base(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "second"
    run_folder(run, f"model: {base}\ndata: {{train: [a.json]}}\nmethod: full\n")
    final = model_folder("gpt2", run / "final", seed=3)
    assert torch.equal(logits(merge(run, tmp_path / "out")), logits(final))
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert 2 in (generation["eos_token_id"] if isinstance(generation["eos_token_id"], list) else [generation["eos_token_id"]])


def test_published_sampling_values_do_not_stop_the_export(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    (base / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}')
    out = merge(base, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6


def test_mistakes_are_told_and_leave_nothing_behind(tmp_path: Path) -> None:
    base = model_folder("llama", tmp_path / "base")
    other = adapter_folder("gpt2", tmp_path / "adapter", base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(UserError, match="not empty"):
        merge(base, tmp_path / "full")
    with pytest.raises(UserError, match="is not a size"):
        merge(base, tmp_path / "out", max_shard_size="2 bananas")
    with pytest.raises(UserError, match="no checkpoints"):
        merge(base, tmp_path / "out", checkpoint=1)
    with pytest.raises(UserError, match="an adapter goes with a model"):
        merge(other, tmp_path / "out", adapter=other)
    with pytest.raises(UserError, match="no such folder"):
        merge(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="there is no run `nowhere`"):
        merge("nowhere", tmp_path / "out")
    with pytest.raises(UserError):
        merge(base, tmp_path / "out", adapter=other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "full"]


def test_stretched_positions_are_written_into_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path)
    scaling = "model.rope_scaling={type: yarn, factor: 2}"
    for method in ("lora", "full"):
        run = luthier.train(
            space.recipe, overrides=[scaling, f"method={method}", "train.max_steps=2"], name=method, progress=False
        )
        talking = luthier.load(run).model
        out = merge(method, tmp_path / f"{method}-merged")
        written = json.loads((out / "config.json").read_text())
        assert written["max_position_embeddings"] == 1024
        assert written["rope_parameters"]["rope_type"] == "yarn"
        tokens = torch.arange(3, 603)[None]
        with torch.no_grad():
            expected = talking(tokens, use_cache=False).logits
            found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()(tokens, use_cache=False).logits
        assert (found - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
    unscaled = AutoModelForCausalLM.from_pretrained(space.folder / "model", dtype=torch.float32).config
    assert unscaled.rope_parameters["rope_type"] == "default"


def test_what_was_merged_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = model_folder("llama", tmp_path / "base")
    adapter = adapter_folder("llama", tmp_path / "adapter", base)
    assert run(["export", "merge", str(adapter), "--out", str(tmp_path / "out")]) == 0
    assert "read back by transformers: logits differ by" in capsys.readouterr().out
    assert compared(base, tmp_path / "out").value > 0.1, "another model is noticed"
    assert run(["export", "merge", str(adapter), "--out", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "perplexity differs by" in capsys.readouterr().out
    assert run(["export", "merge", str(adapter), "--out", str(tmp_path / "fast"), "--no-check"]) == 0
    assert "not read back" in capsys.readouterr().out
