"""`luthier adapters`: what is typed and what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.cli.app import run
from luthier.models.adapters.contents import read_contents
from luthier.models.methods import apply_method
from luthier.models.policy import Policy
from luthier.recipe.schema import IA3, AdaLoRA, Method, PTuning
from tests.export.test_combine import adapter, updates
from tests.families import build, save


def test_weights_follow_their_option_or_stand_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(adapter(tmp_path / "a", 1)), str(adapter(tmp_path / "b", 2))
    found = []
    for number, written in enumerate((["0.7", "0.3"], ["0.7,0.3"], ["0.7", "--weights", "0.3"])):
        out = tmp_path / f"out{number}"
        assert run(["adapters", "merge", first, second, "--weights", *written, "--output", str(out)]) == 0
        found.append(updates(out))
    assert "2 adapters written as one" in capsys.readouterr().out
    for other in found[1:]:
        assert all((found[0][name] == other[name]).all() for name in other)
    assert run(["adapters", "merge", first, second, "--weights", "much", "--output", str(tmp_path / "x")]) == 2
    assert "`much` is not a number" in capsys.readouterr().err


def test_list_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "runs" / "a", 1, rank=3, rslora=True, target=("q_proj", "up_proj"), modules_to_save=("lm_head",))
    assert run(["adapters", "list", str(tmp_path)]) == 0
    assert f"{folder}  LORA" in capsys.readouterr().out
    assert run(["adapters", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    for part in ("LoRA, rsLoRA", "3 (alpha 6)", "4: q_proj, up_proj", f"{read_contents(folder).count():,}", "lm_head.weight"):
        assert part in shown
    folder = adapter(tmp_path / "runs" / "b", 1, rank=3, dora=True, target=("q_proj",))
    assert run(["adapters", "show", str(folder)]) == 0
    assert "lora_magnitude_vector (2)" in capsys.readouterr().out
    assert run(["adapters", "list", str(tmp_path / "runs" / "a" / "none")]) == 2
    assert run(["adapters", "show", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (AdaLoRA(rank=2, start_rank=4), ("ADALORA", "lora_A (14)", "lora_E (14)")),
        (PTuning(pre_seq_len=4), ("PREFIX_TUNING", "prompt_embeddings", "512")),
        (IA3(), ("IA3", "ia3_l (6)")),
    ],
)
def test_any_adapter_is_shown(method: Method, parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("llama")
    policy = Policy(model, apply_method(model, method, seed=0))
    policy.save(tmp_path / "adapter")
    assert run(["adapters", "show", str(tmp_path / "adapter")]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in parts), shown


def test_a_whole_model_is_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    whole = save("llama", tmp_path / "model")
    capsys.readouterr()
    assert run(["train", "tiny/identity", f"model.adapter={whole}"]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert told.endswith("This is a whole model; it is named by `model.path`.")
    assert "\n" not in told


def test_import_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {
        f"llm.base_model.model.model.layers.0.attention.wqkv.lora_{part}.default.weight": torch.ones(2, 2) for part in "AB"
    }
    torch.save({"state_dict": tensors}, tmp_path / "iter_500.pth")
    file, out = str(tmp_path / "iter_500.pth"), str(tmp_path / "out")
    assert run(["adapters", "import", file, out, "--base", "owner/base"]) == 2
    assert "Give `lora_alpha` with `--alpha`" in capsys.readouterr().err
    assert run(["adapters", "import", file, out, "--base", "owner/base", "--alpha", "16"]) == 0
    assert "LoRA of rank 2, alpha 16, for owner/base" in capsys.readouterr().out
    assert run(["adapters", "show", out]) == 0
