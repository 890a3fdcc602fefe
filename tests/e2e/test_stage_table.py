"""The table of stages and methods: three steps of the embedded model in every cell, once more with an interruption, and what comes out.

An interrupted and resumed run ends in the same bits as an undisturbed one: weights, state of the optimizer, and every number it told.
What is left behind is read by transformers or PEFT without Luthier, and says the same: a whole model from its folder, an adapter on its
base, and an adapter that was learnt on four bits on the same base in four bits, as transformers and bitsandbytes make it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

import luthier
from luthier.data.wanted import WANTED
from luthier.errors import Stopped
from luthier.generation.chat import ChatModel
from luthier.models.adapters.format import is_adapter
from luthier.models.hub import fetch
from tests.e2e.interrupted import StopAt, steps
from tests.workspace import Workspace, small_model

QUESTIONS = [f"Count to {n}." for n in range(2, 14)]
ANSWERS = [", ".join(map(str, range(1, n + 1))) for n in range(2, 14)]
REPEATED = [" ".join(["one"] * n) for n in range(2, 14)]
TRIPLES = list(zip(QUESTIONS, ANSWERS, REPEATED, strict=True))

DOCUMENTS = [{"text": f"{question} {answer}."} for question, answer, _ in TRIPLES]
CONVERSATIONS = [{"instruction": question, "output": answer} for question, answer, _ in TRIPLES]
PAIRS = [{"prompt": question, "chosen": better, "rejected": worse} for question, better, worse in TRIPLES]
OPINIONS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for row in PAIRS for side in list(row)[1:]
]
TOPICS = [{"text": text, "label": kind} for row in TRIPLES for kind, text in zip(("asks", "counts", "repeats"), row, strict=True)]
PROMPTS = [{"prompt": question} for question in QUESTIONS]
REWARD = """
def sums(answers):
    return [sum(map(ord, answer.text)) % 8 / 8 for answer in answers]
"""
WRITTEN = {"rewards": {"python": "reward.py:sums", "name": "sums"}, "answers": 2, "max_new_tokens": 6, "temperature": 2.0}
"""Answers are worth what their letters happen to add up to, so that hardly two of them are worth the same."""

STAGES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "pt": ({"type": "pt"}, DOCUMENTS),
    "sft": ({"type": "sft"}, CONVERSATIONS),
    "sft, dft": ({"type": "sft", "loss": "dft"}, CONVERSATIONS),
    "dpo": ({"type": "dpo"}, PAIRS),
    "dpo, aot": ({"type": "dpo", "loss": "aot_unpaired"}, PAIRS),
    "orpo": ({"type": "orpo"}, PAIRS),
    "simpo": ({"type": "simpo"}, PAIRS),
    "cpo": ({"type": "cpo"}, PAIRS),
    "kto": ({"type": "kto"}, OPINIONS),
    "bco": ({"type": "bco"}, OPINIONS),
    "rm": ({"type": "rm"}, PAIRS),
    "classify": ({"type": "classify"}, TOPICS),
    "distill": ({"type": "distill", "teacher": "teacher", "sft_weight": 0.5}, CONVERSATIONS),
    "online_dpo": ({"type": "online_dpo"} | WRITTEN, PROMPTS),
    "grpo": ({"type": "grpo", "beta": 0.05, "mini_batches": 2} | WRITTEN, PROMPTS),
    "ppo": ({"type": "ppo", "passes": 2} | WRITTEN, PROMPTS),
}
"""Name of a row → its stage, and what it learns from."""
SCORING = ("rm", "classify")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"type": "full"}},
    "freeze": {"method": {"type": "freeze", "layers": 1}},
    "lora": {"method": {"type": "lora", "rank": 4, "dropout": 0.1}},
    "qlora-nf4": {
        "method": {"type": "lora", "rank": 4, "dropout": 0.1},
        "model": {"path": "tiny", "quantization": {"type": "nf4"}},
    },
}
QUICK = (("sft, dft", "freeze"), ("kto", "lora"), ("classify", "qlora-nf4"))
"""The cells that `make test` tries."""
CLOCK = ("seq", "attempt", "time", "seconds", "tokens_per_second")
"""What a run tells of itself that is no result."""
TOKENS = torch.arange(300, 340)[None]


def space_of(folder: Path, stage: str, method: str) -> Workspace:
    """The recipe and the data of a cell."""
    section, rows = STAGES[stage]
    space = Workspace.make(
        folder,
        **{
            "stage": section,
            "model": {"path": "tiny"},
            "data": {"max_length": 64},
            "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "micro_batch_tokens": 192},
            "checkpoint": {"every": 1},
        }
        | METHODS[method],
    )
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "reward.py").write_text(REWARD)
    if stage == "distill":
        small_model(folder / "teacher", "gpt2", seed=1)
    return space


def told(run: luthier.Run) -> list[dict[str, Any]]:
    """Every number of every step."""
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in steps(run)]


def kept(run: luthier.Run) -> dict[str, Tensor]:
    """All tensors of the last checkpoint: weights, moments, masters, and what a stage keeps besides."""
    folder = run.folder.checkpoint(3)
    files = sorted(folder.rglob("*.safetensors"))
    assert any("resume" in file.parts for file in files)
    return {f"{file.relative_to(folder)}: {name}": value for file in files for name, value in load_file(file).items()}


@torch.no_grad()
def says(model: Any) -> Tensor:
    """What a model says of a row of tokens: logits [1, T, V], or scores [1, labels]."""
    found: Tensor = model.train(mode=False)(input_ids=TOKENS, use_cache=False).logits
    return found


def in_plain(run: luthier.Run, stage: str, method: str) -> Any:
    """What a run left behind, by transformers and PEFT alone."""
    final, kind = run.path / "final", AutoModelForSequenceClassification if stage in SCORING else AutoModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not is_adapter(final):
            return kind.from_pretrained(final, dtype=torch.float32)
        options: dict[str, Any] = {"num_labels": {"rm": 1, "classify": 3}[stage]} if stage in SCORING else {}
        if method == "qlora-nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
                llm_int8_skip_modules=["score", "lm_head"],
            )
        base = kind.from_pretrained(fetch("tiny"), dtype=torch.float32, **options)
        for layer in base.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):  # or bitsandbytes computes in bfloat16 where it can
                layer.support_avx512bf16_for_cpu = False
        return peft.PeftModel.from_pretrained(base, str(final))


def test_no_stage_is_missing() -> None:
    assert {section["type"] for section, _ in STAGES.values()} == set(WANTED)


CELLS = [(stage, method) for stage in STAGES for method in METHODS]


@pytest.mark.parametrize(
    ("stage", "method"),
    [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow, id="-".join(cell)) for cell in CELLS],
)
def test_three_steps_resume_to_the_bit_and_their_product_is_an_ordinary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, method: str
) -> None:
    if method == "qlora-nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, stage, method)
    run = luthier.train(space.recipe, progress=False)
    assert [record["step"] for record in steps(run)] == [1, 2, 3]
    assert all(record["grad_norm"] > 0 for record in steps(run))

    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(1),), progress=False)
    assert not luthier.Run.find("broken").folder.final.exists()
    resumed = luthier.resume("broken", progress=False)
    assert told(resumed) == told(run)
    expected, found = kept(run), kept(resumed)
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []

    assert is_adapter(run.path / "final") == ("lora" in method)
    ours = luthier.load(run)
    model = ours.model if isinstance(ours, ChatModel) else ours.scorer.model
    torch.testing.assert_close(says(in_plain(run, stage, method)), says(model), atol=1e-4, rtol=0)
