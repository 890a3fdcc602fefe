"""BIG-Bench Hard (Suzgun et al. 2022): 27 tasks, answered directly, behind the three solved examples that were published with them.

Where a question names its options, or a task has but a few answers (`yes`, `no`), the likeliest of them counts. The rest (sorting
words, closing brackets, arithmetic) is written, and has to be the answer to the letter. The published examples hold a chain of
thought; what is shown here is their answer alone, as in the paper's "answer-only" prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from luthier.errors import UserError, did_you_mean
from luthier.evaluation.choice import Asked, accuracies, decide, judged
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.published import Files
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.recipe.sections.tasks import BBHTask

FEW = 10
"""Most different answers of a task that are taken for a choice."""
LONGEST_ANSWER = 64
_LETTERED = re.compile(r"^\(([A-Z])\) ", re.MULTILINE)
_LISTED = re.compile(r"^- (.+?)\s*$", re.MULTILINE)
_SOLVED = re.compile(r"^Q: (.*?)\nA: .*?[Ss]o the answer is (.*?)\.?\s*$", re.DOTALL)


class Hard(NamedTuple):
    """A question as published, and its task."""

    text: str
    answer: str
    subject: str
    origin: str
    choices: tuple[str, ...]


class BBH:
    """The task. Arguments are its settings."""

    def __init__(self, settings: BBHTask) -> None:
        self.settings = settings
        self.measures = {"accuracy": True, "accuracy_macro": True}

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        settings = self.settings
        shots = 3 if settings.shots is None else settings.shots
        questions, solved = read(settings)
        contexts = ["".join(solved.get(each.subject, [])[: shots + 1]) + f"Q: {each.text}\nA:" for each in questions]
        closed = [place for place, each in enumerate(questions) if each.choices]
        written = [place for place, each in enumerate(questions) if not each.choices]
        items: list[dict[str, object]] = [{} for _ in questions]
        asked = [_asked(questions[place], contexts[place]) for place in closed]
        said = decide(examinee, asked, chat=settings.chat, progress=progress, title=settings.title())
        for place, item in zip(closed, judged(asked, said, form="letters")[1], strict=True):
            items[place] = item
        for place, answer in zip(written, self._answers(examinee, [contexts[place] for place in written], progress), strict=True):
            each = questions[place]
            items[place] = {"origin": each.origin, "subject": each.subject, "question": each.text, "answer": answer}
            items[place] |= {"reference": each.answer, "right": answer == each.answer}
        right = [bool(item["right"]) for item in items]
        notes = [f"{len(written):,} of {len(questions):,} answers were written, not chosen"] if written else []
        return Outcome(
            accuracies(right, [each.subject for each in questions]), items, notes, {"rows": len(items), "shots": shots}
        )

    def _answers(self, examinee: Examinee, contexts: Sequence[str], progress: Progress) -> list[str]:
        chat = self.settings.chat
        prompts = [
            examinee.prompt([{"role": "user", "content": context}]) if chat else examinee.tokens(context) for context in contexts
        ]
        settings = examinee.decoding(plain=not chat, max_new_tokens=LONGEST_ANSWER, stop_strings=("\n",))
        said, _ = examinee.answers(prompts, settings, done=counting(progress, self.settings.title()))
        return [one.text.strip() for one in said]


def read(settings: BBHTask) -> tuple[list[Hard], dict[str, list[str]]]:
    """The questions of the wanted tasks, and of each task what stands before them: what it is about, and the solved examples.

    Raises:
        UserError: there is no such task, or a file is not what was published.
    """
    files = Files(settings.path)
    tasks, prompts = {}, {}
    for name in files.names():
        place = PurePosixPath(name)
        if place.suffix == ".json" and place.name != "mapping.json":
            tasks[place.stem] = name
        elif place.suffix == ".txt":
            prompts[place.stem] = name
    for subject in settings.subjects:
        if subject not in tasks:
            raise UserError(f"there is no task `{subject}`", where=str(files.path), hint=did_you_mean(subject, tasks))
    questions: list[Hard] = []
    for subject, name in tasks.items():
        if not settings.subjects or subject in settings.subjects:
            questions += _questions(files, name, subject)[: settings.limit]
    if not questions:
        raise UserError("there is no `bbh/TASK.json` in it", where=str(files.path))
    return questions, {subject: solved_in(files.text(name)) for subject, name in prompts.items()}


def solved_in(text: str) -> list[str]:
    """What a task is about, and the solved examples of a file of `cot-prompts`, without their thoughts."""
    about, *parts = re.split(r"\n\n(?=Q: )", text.rpartition("-----\n")[2])
    found = [_SOLVED.match(part.strip()) for part in parts]
    return [f"{about.strip()}\n\n", *(f"Q: {match[1]}\nA: {match[2]}\n\n" for match in found if match)]


def _questions(files: Files, name: str, subject: str) -> list[Hard]:
    where = f"{files.path}/{name}"
    try:
        rows = [(str(row["input"]), str(row["target"])) for row in json.loads(files.text(name))["examples"]]
    except (ValueError, KeyError, TypeError):
        raise UserError("it is not `{examples: [{input, target}, …]}`", where=where) from None
    targets = tuple(sorted({target for _, target in rows}))
    few = targets if len(targets) <= FEW else ()
    return [
        Hard(text, target, subject, f"{where}:{number}", _choices(text, target) or few)
        for number, (text, target) in enumerate(rows, 1)
    ]


def _choices(text: str, target: str) -> tuple[str, ...]:
    """The options that a question names; none, if the answer is not among them."""
    lettered = tuple(f"({letter})" for letter in _LETTERED.findall(text))
    listed = tuple(_LISTED.findall(text.partition("Options:")[2]))
    return next((options for options in (lettered, listed) if target in options), ())


def _asked(question: Hard, context: str) -> Asked:
    about = {"question": question.text, "choices": list(question.choices)}
    return Asked(context, question.choices, question.choices.index(question.answer), question.origin, question.subject, about)


def build(settings: BBHTask) -> BBH:
    """The task of these settings."""
    return BBH(settings)
