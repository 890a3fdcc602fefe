r"""What an answer shares with its reference: BLEU, chrF, ROUGE, F1, exact match, and whether it is what was asked for.

| measure | of | by |
|---|---|---|
| `bleu` | the whole corpus: n-grams of 1 to 4 words, Papineni et al. 2002 | sacrebleu; Chinese by characters (its tokenizer `zh`) |
| `chrf` | the whole corpus: n-grams of 1 to 6 characters, Popović 2015 | sacrebleu |
| `rouge1`, `rouge2`, `rougeL` | each answer, F-measure, Lin 2004 | rouge-score, Chinese words by jieba |
| `f1` | each answer: shared words as in SQuAD, 2PR/(P + R) | here |
| `exact_match`, `json`, `math`, `code`, `pattern`, `python` | each answer, 0 or 1 | the rewards of reinforcement |

BLEU and chrF are no means of answers, so a row of each answer holds its counts of n-grams, as sacrebleu takes them, and the score is
sacrebleu's of their sums; it is the library's corpus score. All but chrF and BLEU are told as shares.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luthier.evaluation.statistics import Measure, Numbers, mean
from luthier.evaluation.words import Language, Words, needed, words
from luthier.objectives.rewards import Answer, Bad, build
from luthier.objectives.rewards.fenced import last_block
from luthier.recipe.sections.rewards import Code, ExactMatch, FormatRegex, MathVerify, OwnCode, Reward
from luthier.recipe.sections.tasks import GenerateTask

ROUGES = ("rouge1", "rouge2", "rougeL")
REWARDS: dict[str, Callable[[GenerateTask], Reward]] = {
    "exact_match": lambda task: ExactMatch(),
    "math": lambda task: MathVerify(),
    "code": lambda task: Code(),
    "pattern": lambda task: FormatRegex(pattern=task.pattern, match="anywhere"),
    "python": lambda task: OwnCode(python=task.python),
}
"""Measures that are rewards."""


def names_of(settings: GenerateTask) -> list[str]:
    """The measures of a task, in order."""
    asked = [name for metric in settings.metrics for name in (ROUGES if metric == "rouge" else (metric,))]
    return asked + [name for name in ("pattern", "python") if getattr(settings, name)]


def measured(settings: GenerateTask, answers: Sequence[Answer], language: Language) -> tuple[list[Measure], list[str]]:
    """The measures of a task, and what was bad about its answers.

    Raises:
        UserError: a library is missing.
    """
    measures: list[Measure] = []
    notes: list[str] = []
    said, right = [answer.text for answer in answers], [answer.reference or "" for answer in answers]
    for metric in (*settings.metrics, *(name for name in ("pattern", "python") if getattr(settings, name))):
        if metric in ("bleu", "chrf"):
            measures.append(_corpus(metric, said, right, language))
        elif metric == "rouge":
            measures += _rouge(said, right, language)
        elif metric == "f1":
            measures.append(mean("f1", [f1(one, other, language) for one, other in zip(said, right, strict=True)]))
        elif metric == "json":
            measures.append(mean("json", [is_json(text) for text in said]))
        else:
            measures.append(_by_reward(metric, build(REWARDS[metric](settings)), answers, notes))
    return measures, notes


def corpus_metric(name: str, language: Language) -> Any:
    """sacrebleu's metric.

    Raises:
        UserError: sacrebleu is not installed.
    """
    metrics = needed("sacrebleu.metrics", f"`{name}`")
    return metrics.CHRF() if name == "chrf" else metrics.BLEU(tokenize="zh" if language == "zh" else "13a")


def f1(answer: str, reference: str, language: Language) -> float:
    """Shared words of two texts; 1 where neither has any."""
    one, other = Counter(_parted(answer, language)), Counter(_parted(reference, language))
    shared = sum((one & other).values())
    if not one or not other:
        return float(one == other)
    return 2 * shared / (one.total() + other.total())


def is_json(text: str) -> bool:
    """Whether a text, or the last fenced block in it, is JSON."""
    for candidate in (text.strip(), last_block(text)):
        try:
            json.loads(candidate or "")
            return True
        except (ValueError, RecursionError):
            continue
    return False


def _parted(text: str, language: Language) -> list[str]:
    """Words; of Chinese the characters, so that F1 does not depend on how words are found."""
    return [letter for letter in text.casefold() if letter.isalnum()] if language == "zh" else words(text, "en")


def _corpus(name: str, said: Sequence[str], right: Sequence[str], language: Language) -> Measure:
    """A corpus score from the counts of each answer, which sacrebleu's metrics take and add up in these two methods."""
    metric = corpus_metric(name, language)
    rows = np.array(metric._extract_corpus_statistics(list(said), [list(right)]), np.float64)

    def value(sums: Numbers) -> Numbers:
        scores = [metric._compute_score_from_stats(row.tolist()).score for row in sums.reshape(-1, sums.shape[-1])]
        return np.array(scores).reshape(sums.shape[:-1])

    return Measure(name, rows, value, percent=False)


def _rouge(said: Sequence[str], right: Sequence[str], language: Language) -> list[Measure]:
    scorer = needed("rouge_score.rouge_scorer", "`rouge`").RougeScorer(list(ROUGES), tokenizer=Words(language))
    scores = [scorer.score(reference, answer) for answer, reference in zip(said, right, strict=True)]
    return [mean(name, [score[name].fmeasure for score in scores]) for name in ROUGES]


def _by_reward(name: str, reward: Callable[..., Sequence[Any]], answers: Sequence[Answer], notes: list[str]) -> Measure:
    """A reward as a measure. What has none counts as 0, and is told: a reward that cannot be found is no pass."""
    given = reward(answers)
    bad = [(answer, value) for answer, value in zip(answers, given, strict=True) if isinstance(value, Bad)]
    if bad:
        notes.append(f"`{name}`: {len(bad):,} of {len(answers):,} count as 0, first at {bad[0][0].origin}: {bad[0][1].why}")
    return mean(name, [_number(value) for value in given])


def _number(value: Any) -> float:
    number = 0.0 if isinstance(value, Bad) or value is None else float(value)
    return number if math.isfinite(number) else 0.0
