"""The same 200 questions and the same texts give lm-evaluation-harness's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.evaluation.choice import Choice
from luthier.evaluation.general import PROSE, rows
from luthier.evaluation.perplexity import Perplexity
from luthier.recipe.sections.tasks import ARCTask, HarnessTask, MMLUTask, PerplexityTask, PIQATask
from tests.evaluation import lm_eval_numbers as theirs
from tests.evaluation.examinees import silent, tiny

NUMBERS = json.loads(theirs.NUMBERS.read_text("utf-8"))


@pytest.fixture(scope="module")
def narrow():
    """The embedded model, reading no further than the library was told to."""
    examinee = tiny()
    before, examinee.longest = examinee.longest, theirs.WINDOW
    yield examinee
    examinee.longest = before


def asked(shared):
    """Tasks, and the library's names for them."""
    data = shared / "data/eval"
    mmlu = {"path": str(data / "mmlu/mmlu.zip"), "shots": 1, "limit": theirs.EACH}
    found = {name: MMLUTask(**mmlu, subjects=[name]) for name in theirs.SUBJECTS}
    found["arc_easy"] = ARCTask(path=str(data / "arc_easy.jsonl"), limit=theirs.ARC)
    found["piqa"] = PIQATask(path=str(data / "piqa.jsonl"), limit=theirs.PIQA)
    return found


def test_the_choices_of_some_questions(shared, narrow):
    for name, settings in asked(shared).items():
        outcome = Choice(settings.model_copy(update={"limit": 6})).examine(narrow, silent)
        for item, logprobs in zip(outcome.items, NUMBERS[name][:6], strict=True):
            assert item["logprobs"] == pytest.approx(logprobs, abs=1e-4, rel=2e-6)


@pytest.mark.slow
def test_the_choices_of_200_questions(shared, narrow):
    count = 0
    for name, settings in asked(shared).items():
        outcome = Choice(settings).examine(narrow, silent)
        assert len(outcome.items) == len(NUMBERS[name])
        for item, logprobs in zip(outcome.items, NUMBERS[name], strict=True):
            assert item["logprobs"] == pytest.approx(logprobs, abs=1e-4, rel=2e-6)
            count += 1
        values = {measure.name: measure.total for measure in outcome.measures}
        means = NUMBERS[f"{name}/means"]
        assert values["accuracy"] == pytest.approx(means["acc,none"])
        if "accuracy_norm" in values:
            assert values["accuracy_norm"] == pytest.approx(means["acc_norm,none"])
    assert count == 200


@pytest.mark.parametrize(("name", "count"), [(PROSE[0], 4), *(pytest.param(name, 24, marks=pytest.mark.slow) for name in PROSE)])
def test_the_perplexity_of_texts_in_windows(name, count, narrow, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows(name)[:count]), "utf-8")
    outcome = Perplexity(PerplexityTask(path=str(file), max_length=theirs.WINDOW)).examine(narrow, silent)
    sums: dict[str, float] = {}
    for item in outcome.items:
        sums[item["origin"]] = sums.get(item["origin"], 0.0) + item["logprob"]
    assert len(outcome.items) > len(sums) == count
    assert list(sums.values()) == pytest.approx(np.ravel(NUMBERS[name][:count]), rel=2e-6)
    if count < len(NUMBERS[name]):
        return
    values = {measure.name: measure.total for measure in outcome.measures}
    means = NUMBERS[f"{name}/means"]
    assert values["bits_per_byte"] == pytest.approx(means["bits_per_byte,none"], rel=1e-6)
    assert np.log(values["word_perplexity"]) == pytest.approx(np.log(means["word_perplexity,none"]), rel=1e-6)


@pytest.mark.slow
def test_the_numbers_are_still_the_librarys(shared):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'luthier[lm_eval]'")
    found = theirs.measure(shared / "data/eval")
    for name in (*asked(shared), *PROSE):
        assert np.allclose(
            [each for one in found[name] for each in one], [each for one in NUMBERS[name] for each in one], atol=1e-3
        )


@pytest.mark.slow
def test_a_task_of_the_library_is_answered_by_our_model(shared, narrow, tmp_path):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'luthier[lm_eval]'")
    import lm_eval

    from luthier.evaluation.harness import Harness, model_for

    tasks = theirs._rows(tmp_path, shared / "data/eval")
    found = lm_eval.simple_evaluate(model=model_for(narrow, silent, "x"), tasks=tasks, bootstrap_iters=0)
    for name in ("arc_easy", "piqa"):
        said = [float(one[0][0]) for each in found["samples"][name] for one in each["resps"]]
        assert said == pytest.approx([each for one in NUMBERS[name] for each in one], abs=1e-4, rel=2e-6)
    settings = HarnessTask.model_construct(name="arc", task=tasks[0], shots=0, limit=None)  # a name would be looked up on the hub
    outcome = Harness(settings).examine(narrow, silent)
    values = {measure.name: measure for measure in outcome.measures}
    assert values["acc_norm"].total == pytest.approx(NUMBERS["arc_easy/means"]["acc_norm,none"])
    assert values["acc"].rows.shape == (theirs.ARC, 2)
    assert values["acc"].percent
    assert outcome.items[0]["question"].startswith("Question: ")
    texts = theirs._texts(tmp_path)
    outcome = Harness(HarnessTask.model_construct(name="text", task=texts[0], shots=0, limit=4)).examine(narrow, silent)
    assert {measure.name for measure in outcome.measures} >= {"bits_per_byte", "word_perplexity"}
    assert not any(measure.percent for measure in outcome.measures)
