r"""GSM8K (Cobbe et al. 2021): sums in words; the model writes its way to the result, and the final number counts.

What counts of an answer is, in this order, what follows `####` (as in the data's own solutions), what `\boxed{}` holds, or the last
number; numbers are compared by value (`objectives.rewards.texts`, the same as the reward `exact_match`). Without a chat template an
answer ends where the next question would begin.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from luthier.data.problems import RowProblem
from luthier.data.sources import rows_of
from luthier.errors import UserError
from luthier.evaluation.choice import ANSWER, QUESTION
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.statistics import mean
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.objectives.rewards.texts import extract, number, same
from luthier.recipe.schema import Source
from luthier.recipe.sections.tasks import GSM8KTask

WAYS = ("marked", "boxed", "number")
ASK = {
    "en": "Solve the problem step by step. End with a line `#### ` and the final number.\n\n",
    "zh": "请一步一步解题，最后另起一行，写“#### ”和最终的数。\n\n",
}
"""What is said to a chat model before the problem, so that it ends as the data does."""


class Problem(NamedTuple):
    """A problem and its solution, which ends with `#### ` and the result."""

    question: str
    solution: str
    origin: str


class GSM8K:
    """The task. Arguments are its settings."""

    def __init__(self, settings: GSM8KTask) -> None:
        self.settings = settings
        self.measures = {"accuracy": True, "answered": True}

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        settings = self.settings
        problems, solved = self._read()
        language = "en" if settings.language == "auto" else settings.language
        shots = (5 if solved else 0) if settings.shots is None else settings.shots
        if shots > len(solved):
            what = f"{shots} solved examples are asked for, and there are {len(solved)}"
            raise UserError(what, where=f"{settings.title()}: shots", hint="Name a file of them in `examples`.")
        before = "".join(f"{_asked(each, language)} {each.solution}\n\n" for each in solved[:shots])
        contexts = [before + _asked(each, language) for each in problems]
        if settings.chat:
            prompts = [examinee.prompt([{"role": "user", "content": ASK[language] + context}]) for context in contexts]
        else:
            prompts = [examinee.tokens(context) for context in contexts]
        stops = {} if settings.chat else {"stop_strings": (QUESTION[language].strip(),)}
        decoding = examinee.decoding(plain=not settings.chat, max_new_tokens=settings.max_new_tokens, **stops)
        said, cut = examinee.answers(prompts, decoding, done=counting(progress, settings.title()))
        items = [_item(problem, one.text) for problem, one in zip(problems, said, strict=True)]
        notes = [f"{cut:,} of {len(prompts):,} prompts are longer than the model reads and lost their beginning"] if cut else []
        measures = [
            mean("accuracy", [item["right"] for item in items]),
            mean("answered", [item["extracted"] is not None for item in items]),
        ]
        return Outcome(measures, items, notes, {"rows": len(items), "shots": shots})

    def _read(self) -> tuple[list[Problem], list[Problem]]:
        """The problems, and the solved ones before them."""
        path, examples = Path(self.settings.path).expanduser(), self.settings.examples
        if path.is_dir():
            examples = examples or str(path / "train.jsonl") if (path / "train.jsonl").is_file() else examples
            path = path / "test.jsonl"
        return problems_in(str(path))[: self.settings.limit], problems_in(examples) if examples else []


def problems_in(path: str) -> list[Problem]:
    """The problems of a file.

    Raises:
        UserError: it cannot be read, or a row has no `question` and `answer`.
    """
    found = []
    for origin, row in rows_of(Source(path=path)):
        if isinstance(row, RowProblem):
            raise UserError(row.message, where=str(origin))
        if not isinstance(row, dict) or not isinstance(row.get("question"), str) or row.get("answer") is None:
            raise UserError("the row has no `question` and `answer`", where=str(origin))
        found.append(Problem(row["question"], str(row["answer"]), str(origin)))
    return found


def _asked(problem: Problem, language: str) -> str:
    return f"{QUESTION[language]}{problem.question}\n{ANSWER[language]}"


def _item(problem: Problem, answer: str) -> dict[str, object]:
    said, reference = _result(answer), _result(problem.solution) or problem.solution
    fits = said is not None and same(said, reference, ignore=("case", "spaces", "width"), numbers=True)
    return {
        "origin": problem.origin,
        "question": problem.question,
        "answer": answer.strip(),
        "extracted": said,
        "reference": reference,
        "right": fits,
    }


def _result(text: str) -> str | None:
    """The final number of a text; of `#### 18 dollars` too."""
    found = extract(text, WAYS)
    if found is None or number(found[1]) is not None:
        return found[1] if found else None
    inner = extract(found[1], ("number",))
    return inner[1] if inner else found[1]


def build(settings: GSM8KTask) -> GSM8K:
    """The task of these settings."""
    return GSM8K(settings)
