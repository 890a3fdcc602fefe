r"""Questions with choices, decided by likelihood: the choice is right that the model finds the likeliest behind the question.

    MMLU, C-Eval, CMMLU                                           ARC, PIQA, your own
      The following are multiple choice questions …                 Question: Which of these …?
      (solved examples)                                             Answer: …
      Question                                                         ↑ each choice is asked whole
      A. …  B. …  C. …  D. …
      Answer: A|B|C|D     ← one letter is asked

`accuracy` takes log p of the whole choice, `accuracy_norm` log p for each of its characters, because a long text is never as likely
as a short one; letters are alike, so for them it is left out. `accuracy_macro` is the mean of the subjects, which C-Eval and CMMLU
publish, where `accuracy` counts every question once. Prompts and solved examples are those of lm-evaluation-harness: the first of the
`dev` part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from luthier.errors import UserError
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.likelihood import Likelihood
from luthier.evaluation.published import LETTERS, Files, Question, rows_in, subjects_of
from luthier.evaluation.statistics import Measure, Numbers, mean
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.recipe.sections.tasks import ARCTask, ChoiceTask, PIQATask, Rows, Subjects

HEADS: dict[tuple[str, str], str] = {
    ("mmlu", "en"): "The following are multiple choice questions (with answers) about {}.\n\n",
    ("ceval", "zh"): "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n",
    ("cmmlu", "zh"): "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n",
}
"""First line of an examination in its own language; in the other language that of MMLU or CMMLU is taken."""
ANSWER = {"en": "Answer:", "zh": "答案："}
QUESTION = {"en": "Question: ", "zh": "题目："}
Form = Literal["letters", "texts"]


@dataclass(frozen=True)
class Asked:
    """A question as it is put.

    Args:
        context: all that stands before the answer.
        choices: what is asked about, without the space before it.
        answer: which is right.
        origin, subject: of the question.
        about: further plain data for its item.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    origin: str
    subject: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)


def body(question: Question, form: Form, language: str) -> str:
    """A question without its answer, up to the word that asks for it."""
    if question.open:
        return question.text
    if form == "texts":
        return f"{QUESTION[language]}{question.text}\n{ANSWER[language]}"
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{question.text.strip()}\n{choices}{ANSWER[language]}"


def answers_of(question: Question, form: Form) -> tuple[str, ...]:
    """What may stand behind a question."""
    return question.choices if form == "texts" else tuple(LETTERS[: len(question.choices)])


def put(question: Question, solved: Sequence[Question], form: Form, language: str, head: str = "") -> Asked:
    """A question behind solved ones, with a blank line between them."""
    shown = [f"{body(each, form, language)} {answers_of(each, form)[each.answer]}\n\n" for each in solved]
    context = f"{head}{''.join(shown)}{body(question, form, language)}"
    choices = answers_of(question, form)
    about = {"question": question.text, "choices": list(question.choices)}
    return Asked(context, choices, question.answer, question.origin, question.subject, about)


def decide(examinee: Examinee, asked: Sequence[Asked], *, chat: bool, progress: Progress, title: str) -> list[list[Likelihood]]:
    """How likely each choice of each question is."""
    passages = [
        examinee.answer_passage([{"role": "user", "content": each.context}], choice)
        if chat
        else examinee.passage(each.context, f" {choice}")
        for each in asked
        for choice in each.choices
    ]
    said = iter(examinee.likelihoods(passages, done=counting(progress, title)))
    return [[next(said) for _ in each.choices] for each in asked]


def judged(
    asked: Sequence[Asked], said: Sequence[Sequence[Likelihood]], *, form: Form
) -> tuple[list[Measure], list[dict[str, Any]]]:
    """The measures of decided questions, and an item for each."""
    items, right, norm = [], [], []
    for each, choices in zip(asked, said, strict=True):
        logprobs = [choice.logprob for choice in choices]
        chosen = int(np.argmax(logprobs))
        by_length = int(np.argmax([logprob / max(1, len(text)) for logprob, text in zip(logprobs, each.choices, strict=True)]))
        right.append(chosen == each.answer)
        norm.append(by_length == each.answer)
        items.append(
            {
                "origin": each.origin,
                "subject": each.subject,
                **each.about,
                "logprobs": logprobs,
                "answer": each.choices[chosen],
                "reference": each.choices[each.answer],
                "right": right[-1],
            }
        )
    measures = accuracies(right, [each.subject for each in asked])
    return measures + ([mean("accuracy_norm", norm)] if form == "texts" else []), items


def accuracies(right: Sequence[bool], subjects: Sequence[str]) -> list[Measure]:
    """The share of right answers, that of each subject, and the mean of the subjects where there are several."""
    names = sorted(set(subjects))
    several = len(names) > 1
    column = np.array([names.index(subject) for subject in subjects])
    groups = {name: column == place for place, name in enumerate(names)} if several else {}
    measures = [mean("accuracy", right, groups=groups)]
    if several:
        rows = np.zeros((len(right), 2 * len(names)))
        rows[np.arange(len(right)), column] = right
        rows[np.arange(len(right)), len(names) + column] = 1
        measures.append(Measure("accuracy_macro", rows, _mean_of_subjects))
    return measures


def _mean_of_subjects(sums: Numbers) -> Numbers:
    """The mean of the subjects that are there; a resample may lack one."""
    right, asked = np.split(sums, 2, axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmean(np.where(asked > 0, right / asked, np.nan), axis=-1))


class Choice:
    """Questions in rows, or in a file a subject. Arguments are the task's settings."""

    def __init__(self, settings: Rows | Subjects) -> None:
        self.settings = settings
        self.form: Form = "letters" if isinstance(settings, Subjects) else "texts"
        told = ("accuracy", "accuracy_macro") if self.form == "letters" else ("accuracy", "accuracy_norm")
        self.measures = dict.fromkeys(told, True)

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        settings = self.settings
        shots, asked = self._of_subjects(settings) if isinstance(settings, Subjects) else self._of_rows(settings)
        said = decide(examinee, asked, chat=settings.chat, progress=progress, title=settings.title())
        measures, items = judged(asked, said, form=self.form)
        return Outcome(measures, items, _too_long(examinee, asked), {"rows": len(asked), "shots": shots})

    def _of_rows(self, settings: Rows) -> tuple[int, list[Asked]]:
        solved = rows_in(settings.examples, "train") if settings.examples else []
        shots = settings.shots or 0
        if shots > len(solved):
            raise UserError(
                f"{shots} solved examples are asked for, and there are {len(solved)}",
                where=f"{settings.title()}: shots",
                hint="Name a file of them in `examples`.",
            )
        language = "en" if settings.language == "auto" else settings.language
        questions = rows_in(settings.path)[: settings.limit]
        return shots, [put(question, solved[:shots], self.form, language) for question in questions]

    def _of_subjects(self, settings: Subjects) -> tuple[int, list[Asked]]:
        kind = str(getattr(settings, "type", ""))
        own = "en" if kind == "mmlu" else "zh"
        language = own if settings.language == "auto" else settings.language
        files = Files(settings.path)
        split = settings.split or ("val" if kind == "ceval" else "test")
        shots = 5 if settings.shots is None else settings.shots
        titles = files.titles()
        solved = subjects_of(files, "dev", settings.subjects) if shots else {}
        head = (
            HEADS.get((kind, language)) or HEADS["mmlu", "en"]
            if language == "en"
            else HEADS.get((kind, "zh")) or HEADS["cmmlu", "zh"]
        )
        asked = []
        for subject, questions in subjects_of(files, split, settings.subjects).items():
            name = str(titles.get(subject, {}).get("name") or subject.replace("_", " "))
            examples = solved.get(subject, [])[:shots]
            asked += [put(question, examples, self.form, language, head.format(name)) for question in questions[: settings.limit]]
        return shots, asked


def _too_long(examinee: Examinee, asked: Sequence[Asked]) -> list[str]:
    """Whether questions lost their beginning: told by characters, for no token has more than one of them on average."""
    long = [
        each for each in asked if len(each.context) > examinee.longest and len(examinee.tokens(each.context)) >= examinee.longest
    ]
    if not long:
        return []
    return [f"{len(long):,} of {len(asked):,} questions are longer than the {examinee.longest:,} tokens that the model reads"]


def build(settings: ChoiceTask | ARCTask | PIQATask | Subjects) -> Choice:
    """The task of these settings."""
    return Choice(settings)
