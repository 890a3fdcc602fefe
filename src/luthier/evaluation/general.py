"""The fixed general set: what a model knew before a fine-tune, and may have forgotten after it.

Four small parts come with Luthier (`general/`, made by `recipes/tiny/general.py`; `general/ATTRIBUTION.md` says where each text is from):

* `knowledge.jsonl`: two questions of each subject of MMLU, English (MIT);
* `basics.jsonl`: easy questions of Luthier's own in English and in Chinese: colours, opposites, capitals, numbers;
* `prose_en.jsonl`, `prose_zh.jsonl`: pieces of running text, whose bits per byte say how well the language itself is kept.

It is made to compare a model with itself. With a few hundred items it sees that something broke, not which of two models knows more,
and parts of it may be among what a model was pre-trained on; both hold for base and tuned alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from luthier.evaluation.choice import Asked, body, decide, judged, put
from luthier.evaluation.examinee import LONGEST, Examinee
from luthier.evaluation.perplexity import document_texts, perplexities
from luthier.evaluation.published import Question
from luthier.evaluation.statistics import Measure
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.recipe.sections.tasks import ForgettingTask

PARTS = ("knowledge", "basics_en", "basics_zh")
PROSE = ("prose_en", "prose_zh")


class Forgetting:
    """The task. Arguments are its settings."""

    def __init__(self, settings: ForgettingTask) -> None:
        self.settings = settings
        self.measures = dict.fromkeys(PARTS, True) | dict.fromkeys(PROSE, False)

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        title, limit = self.settings.title(), self.settings.limit
        measures: list[Measure] = []
        items: list[dict[str, Any]] = []
        for part in PARTS:
            asked = _asked(part)[:limit]
            said = decide(examinee, asked, chat=False, progress=progress, title=f"{title}: {part}")
            found, told = judged(asked, said, form="letters")
            measures.append(replace(found[0], name=part, groups={}))
            items += told
        for part in PROSE:
            texts = [
                text
                for number, row in enumerate(rows(part)[:limit])
                for text in document_texts(examinee, row["text"], min(examinee.longest, LONGEST), f"{part}:{number}")
            ]
            likelihoods = examinee.likelihoods([text.passage for text in texts], done=counting(progress, f"{title}: {part}"))
            bits = perplexities(texts, likelihoods)[1]
            measures.append(replace(bits, name=part))
            items += [{"origin": text.origin, "logprob": one.logprob} for text, one in zip(texts, likelihoods, strict=True)]
        notes = [f"`{part}` is bits per byte of running text: lower is better" for part in PROSE]
        return Outcome(measures, items, notes, {"rows": len(items)})


def rows(part: str) -> list[dict[str, Any]]:
    """The rows of a part that comes with Luthier."""
    text = files("luthier.evaluation").joinpath("general", f"{part}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _asked(part: str) -> list[Asked]:
    """The questions of a part: letters for knowledge, whole answers for basics, which small models can do too."""
    if part == "knowledge":
        return [put(_question(row, part, number), (), "letters", "en") for number, row in enumerate(rows(part))]
    language = part.rpartition("_")[2]
    own = [row for row in rows("basics") if row["language"] == language]
    return [_whole(_question(row, part, number), language) for number, row in enumerate(own)]


def _whole(question: Question, language: str) -> Asked:
    about = {"question": question.text, "choices": list(question.choices)}
    return Asked(body(question, "texts", language), question.choices, question.answer, question.origin, "", about)


def _question(row: dict[str, Any], part: str, number: int) -> Question:
    choices: Sequence[str] = row["choices"]
    return Question(row["question"], tuple(choices), int(row["answer"]), f"{part}:{number}", row.get("subject", ""))


def build(settings: ForgettingTask) -> Forgetting:
    """The task of these settings."""
    return Forgetting(settings)
