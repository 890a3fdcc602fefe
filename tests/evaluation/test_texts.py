"""Measures of answers are their libraries'; the rest is what it says."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluation.statistics import compared
from luthier.evaluation.texts import f1, is_json, measured
from luthier.evaluation.words import language_of, words
from luthier.objectives.rewards import Answer
from luthier.recipe.sections.tasks import GenerateTask

ENGLISH = [
    ("The cat sat on the mat.", "The cat is on the mat."),
    ("Hello there, friend!", "Hello, my friend."),
    ("no", "yes it is"),
]
CHINESE = [("今天天气很好，我们去公园。", "今天天气真好，我们去公园玩。"), ("我不知道。", "他昨天去了北京大学。")]


def answers(pairs):
    return [Answer((), said, right, origin=f"a:{n}") for n, (said, right) in enumerate(pairs, 1)]


def values(settings, pairs, language):
    return {measure.name: measure for measure in measured(GenerateTask(path="x", **settings), answers(pairs), language)[0]}


@pytest.mark.parametrize(("pairs", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_corpus_scores_are_those_of_sacrebleu(pairs, language):
    import sacrebleu

    found = values({"metrics": ["bleu", "chrf"]}, pairs, language)
    said, right = [one for one, _ in pairs], [[other for _, other in pairs]]
    bleu = sacrebleu.corpus_bleu(said, right, tokenize="zh" if language == "zh" else "13a")
    assert found["bleu"].total == pytest.approx(bleu.score, abs=1e-9)
    assert found["chrf"].total == pytest.approx(sacrebleu.corpus_chrf(said, right).score, abs=1e-9)
    assert compared(found["bleu"], found["bleu"], 0).difference.low == 0


def test_rouge_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    found = values({"metrics": "rouge"}, ENGLISH, "en")
    scores = [RougeScorer(kinds).score(right, said) for said, right in ENGLISH]
    for kind in kinds:
        assert found[kind].total == pytest.approx(np.mean([score[kind].fmeasure for score in scores]))


def test_chinese_words_are_those_of_jieba():
    import jieba
    from rouge_score.rouge_scorer import RougeScorer

    class Parts:
        def tokenize(self, text):
            return [word for word in jieba.lcut(text) if word not in "，。"]

    found = values({"metrics": "rouge"}, CHINESE, "zh")["rougeL"].total
    scores = [RougeScorer(["rougeL"], tokenizer=Parts()).score(right, said)["rougeL"].fmeasure for said, right in CHINESE]
    assert found == pytest.approx(np.mean(scores))
    assert words("我爱北京大学。", "zh") == ["我", "爱", "北京大学"]


def test_the_language_is_seen():
    assert language_of(["你好，世界", "hello"]) == "zh"
    assert language_of(["hello world 世"]) == "en"
    assert language_of(["42"]) == "en"


def test_f1_and_json():
    assert f1("the cat sat", "The cat ran away", "en") == pytest.approx(4 / 7)
    assert f1("北京", "北京大学", "zh") == pytest.approx(2 / 3)
    assert (f1("", "", "en"), f1("a", "", "en")) == (1.0, 0.0)
    assert is_json('{"a": 1}')
    assert is_json("Here:\n```json\n[1]\n```")
    assert not is_json("{'a': 1}")
    assert not is_json("[" * 100_000)


def test_passes_of_a_regex_and_a_function(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def polite(answers):\n    return [None if 'no' in a.text else 'friend' in a.text for a in answers]\n")
    settings = GenerateTask(path="x", metrics=["exact_match"], pattern=r"\bcat\b", python=f"{own}:polite")
    found = measured(settings, answers(ENGLISH), "en")[0]
    assert {measure.name: measure.total for measure in found} == pytest.approx(
        {"exact_match": 0, "pattern": 1 / 3, "python": 1 / 3}
    )
    with pytest.raises(ValueError, match="is not a regular expression"):
        GenerateTask(path="x", pattern="(")


@pytest.mark.parametrize(("metric", "package"), [("bleu", "sacrebleu.metrics"), ("rouge", "rouge_score.rouge_scorer")])
def test_a_missing_library_is_one_line(metric, package, monkeypatch):
    real = importlib.import_module

    def absent(name, *rest):
        if name == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs the package .*luthier\[evaluate\]"):
        values({"metrics": metric}, ENGLISH, "en")
