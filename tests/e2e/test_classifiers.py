"""Classifiers, end to end: decoders and encoders learn labels, resume to the bit, and predict alike in plain transformers and PEFT."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizerFast

import luthier
from luthier.cli.app import run as main
from luthier.errors import Stopped, UserError
from luthier.export.merge import merge
from luthier.models.adapters.format import is_adapter
from luthier.models.scoring import Classifier
from tests.e2e.test_reward_models import StopAt, steps
from tests.repo.pages import blocks
from tests.workspace import Workspace, weights_of

WORDS = {"fruit": ("apple", "pear", "plum"), "tool": ("hammer", "saw", "file"), "animal": ("cat", "dog", "owl")}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "head": {"type": "freeze", "layers": 0},
    "freeze": {"type": "freeze", "layers": 1},
    "lora": {"type": "lora", "rank": 4},
}


def texts_of(task: str) -> list[dict[str, Any]]:
    """Texts of unlike length; what the words in them are is the label."""
    rows = []
    for number in range(24):
        kinds = [kind for place, kind in enumerate(WORDS) if number % 3 == place or (task == "multi" and number % 4 == place)]
        words = [WORDS[kind][number % 2] for kind in kinds] * (1 + number % 5)
        label: Any = {"single": kinds[0], "multi": kinds, "regression": len(words) / 2}[task]
        rows.append({"text": "I see " + " and ".join(words), "label": label})
    return rows


def small_bert(folder: Path) -> Path:
    """A random BERT for masked words, without pooler, and its tokenizer."""
    letters = [f"{mark}{letter}" for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters])}
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def space_of(folder: Path, method: str, task: str = "single", *, encoder: bool = False, **sections: Any) -> Workspace:
    train = {"max_steps": 6, "batch_size": 8, "learning_rate": 3e-3, "micro_batch_tokens": 64}
    given = {"train": train, "stage": {"type": "classify", "task": task}, "method": METHODS[method]}
    space = Workspace.make(folder, **given, **sections)
    if encoder:
        small_bert(folder / "model")
    (folder / "rows.json").write_text(json.dumps(texts_of(task)))
    return space


def plain_values(folder: Path, base: Path, texts: list[str], labels: int) -> Tensor:
    """What transformers and PEFT say of texts, padded together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_adapter(folder):
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
            model = peft.PeftModel.from_pretrained(model, str(folder))
        else:
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return said_by(model, folder, texts)


@torch.no_grad()
def said_by(model: Any, folder: Path, texts: list[str]) -> Tensor:
    """Values [N, labels] of texts, padded together."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    found: Tensor = model.eval()(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    return found


CASES = [("head", False), ("lora", False), ("full", True), ("head", True), ("lora", True)]
"""Method, and whether the model is an encoder; the other methods of decoders are in the table of stages."""
QUICK = [("lora", False), ("lora", True)]


@pytest.mark.parametrize(
    ("method", "encoder"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow], id="-".join((case[0], "encoder" * case[1])))
        for case in CASES
    ],
)
def test_it_learns_labels_resumes_to_the_bit_and_predicts_as_plain_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, encoder: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, method, encoder=encoder, data={"validation": 6})
    run = luthier.train(space.recipe, progress=False)
    first, *_, last = steps(run)
    assert last["loss"] < first["loss"]
    measured = [record for record in run.metrics() if "eval_loss" in record][-1]
    assert 0 <= measured["eval_f1"] <= 1
    assert 0 <= measured["eval_accuracy"] <= 1
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="broken", callbacks=(StopAt(3),), progress=False)
    resumed = luthier.resume("broken", progress=False)
    assert [record["loss"] for record in steps(resumed)] == [record["loss"] for record in steps(run)]
    expected, found = weights_of(run.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    texts = [row["text"] for row in texts_of("single")]
    classifier = luthier.load(run)
    assert isinstance(classifier, Classifier)
    assert classifier.labels.names == ("animal", "fruit", "tool")
    plain = plain_values(run.path / "final", tmp_path / "model", texts, 3).softmax(1)
    ours = torch.tensor([list(found.scores.values()) for found in classifier.predict(texts)])
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def by_hand(folder: Path, root: Path) -> Any:
    """A whole model with dense layers in its head, as the docs tell users of plain transformers to load it."""
    [told] = [block for block in blocks(root / "docs/classification.md", "python") if "luthier_dense" in block]
    here: dict[str, Any] = {}
    exec(told.replace("runs/topics/final", str(folder)), here)
    return here["plain"]


def with_head(folder: Path, base: Path) -> Any:
    """An adapter with such a head, in plain PEFT: the base is given a head of that form first."""
    labels = json.loads((folder / "labels.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels["names"]), dtype=torch.float32)
    name, last = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    sizes = (last.in_features, *labels["dense"])
    dense = [part for each in pairwise(sizes) for part in (nn.Linear(*each), nn.GELU())]
    model.set_submodule(name, nn.Sequential(*dense, nn.Linear(sizes[-1], last.out_features, last.bias is not None)))
    return peft.PeftModel.from_pretrained(model, str(folder))


DENSE = [*((method, False) for method in METHODS), ("lora", True)]


@pytest.mark.parametrize(
    ("method", "encoder"),
    [
        pytest.param(
            *case, marks=[] if case == ("head", False) else [pytest.mark.slow], id="-".join((case[0], "encoder" * case[1]))
        )
        for case in DENSE
    ],
)
def test_dense_layers_in_the_head_are_learnt_and_travel(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, method: str, encoder: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of(tmp_path, method, encoder=encoder)
    longer = ["train.max_steps=24", "train.learning_rate=1e-2"]  # a random encoder's states tell little
    dense = ["stage.dense_layers=2", *(longer if encoder else ["stage.dense_width=16"])]
    run = luthier.train(space.recipe, overrides=dense, progress=False)
    first, *_, last = steps(run)
    assert last["loss"] < first["loss"]
    with pytest.raises(Stopped):
        luthier.train(space.recipe, overrides=dense, name="broken", callbacks=(StopAt(3),), progress=False)
    expected, found = weights_of(run.path / "final"), weights_of(luthier.resume("broken", progress=False).path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert sorted(value.shape for name, value in expected.items() if name.startswith("score.") and "weight" in name) == (
        [] if "lora" in method else [(3, 16), (16, 16), (16, 64)]
    )

    texts, final = [row["text"] for row in texts_of("single")], run.path / "final"
    classifier = luthier.load(run)
    assert isinstance(classifier, Classifier)
    assert classifier.scorer.single is not encoder
    ours = torch.tensor([list(said.scores.values()) for said in classifier.predict(texts)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = with_head(final, tmp_path / "model") if is_adapter(final) else by_hand(final, root)
    torch.testing.assert_close(ours, said_by(plain, final, texts).softmax(1), atol=1e-4, rtol=0)

    whole = merge(run.path, tmp_path / "merged") if is_adapter(final) else final
    alone = luthier.load(whole)
    assert isinstance(alone, Classifier)
    theirs = torch.tensor([list(said.scores.values()) for said in alone.predict(texts)])
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    again = luthier.train(space.recipe, overrides=[*dense, f"model.path={whole}", "method=full"], name="again", progress=False)
    assert steps(again)[0]["loss"] < first["loss"]
    assert "drawn at random" not in (again.path / "log/rank-0.txt").read_text()


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_several_labels_and_numbers_are_learnt_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.chdir(tmp_path)
    run = luthier.train(space_of(tmp_path, "full", task, data={"validation": 6}).recipe, progress=False)
    first, *_, last = steps(run)
    assert last["loss"] < first["loss"]
    measured = [record for record in run.metrics() if "eval_loss" in record][-1]
    assert ("eval_f1" in measured) == (task == "multi")
    assert ("eval_error" in measured) == (task == "regression")
    classifier = luthier.load(run)
    assert isinstance(classifier, Classifier)
    [found] = classifier.predict(["I see apple and cat"])
    assert isinstance(found.label, tuple if task == "multi" else float)


@pytest.mark.parametrize(
    ("label", "stage", "message"),
    [
        (["fruit", "tool"], {"type": "classify"}, "has 2 labels"),
        ("fruit", {"type": "classify", "labels": ["tool", "animal"]}, "`fruit` is none of `stage.labels`"),
        ("fruit", {"type": "classify", "task": "regression"}, "should be one number"),
        ("fruit", {"type": "classify"}, "one label is not enough"),
    ],
)
def test_labels_that_do_not_fit_are_named_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: Any, stage: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    space = Workspace.make(tmp_path, stage=stage)
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "a plum", "label": label}] * 3))
    with pytest.raises(UserError, match=message):
        luthier.train(space.recipe, progress=False)


def test_an_adapter_is_merged_into_a_folder_that_predicts_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = luthier.train(space_of(tmp_path, "lora", encoder=True).recipe, progress=False)
    merged = merge(run.path, tmp_path / "merged")
    texts = [row["text"] for row in texts_of("single")]
    tuned, alone = luthier.load(run), luthier.load(merged)
    assert isinstance(tuned, Classifier)
    assert isinstance(alone, Classifier)
    assert alone.labels == tuned.labels
    for one, other in zip(tuned.predict(texts), alone.predict(texts), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert "AutoModelForSequenceClassification" in (merged / "README.md").read_text()


def test_a_file_is_labelled_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run = luthier.train(space_of(tmp_path, "head").recipe, progress=False)
    Path("letters.csv").write_text("number,body\n1,I see apple\n2,I see owl and owl\n")
    assert main(["classify", "first", "letters.csv", "--column", "body", "--out", "said.jsonl"]) == 0
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    classifier = luthier.load(run)
    assert isinstance(classifier, Classifier)
    expected = classifier.predict(["I see apple", "I see owl and owl"])
    assert [row["label"] for row in said] == [each.label for each in expected]
    assert [row["number"] for row in said] == ["1", "2"]
    assert said[0]["scores"] == pytest.approx(expected[0].scores, abs=1e-5)
    assert main(["classify", "first", "letters.csv"]) == 2
    assert "no text in `text`" in capsys.readouterr().err
    assert main(["chat", "first", "--prompt", "Hello"]) == 2
    assert "scores texts and writes none" in capsys.readouterr().err
