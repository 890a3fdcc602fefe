"""Examinations as they were published: folders or zip files of CSV and JSON, each with its own columns.

| examination | files | columns |
|---|---|---|
| MMLU | `{dev,val,test}/SUBJECT_test.csv`, without header | question, A, B, C, D, answer |
| C-Eval | `{dev,val,test}/SUBJECT_val.csv` | id, question, A, B, C, D, answer; `test` has no answers |
| CMMLU | `{dev,test}/SUBJECT.csv` | (number), Question, A, B, C, D, Answer |
| ARC | `ARC-Easy-Test.jsonl` | question {stem, choices [{text, label}]}, answerKey; on hubs question, choices {text, label}, answerKey |
| PIQA | `valid.jsonl` with `valid-labels.lst` | goal, sol1, sol2, and label |
| BIG-Bench Hard | `bbh/TASK.json`, `cot-prompts/TASK.txt` | examples [{input, target}] |
| any | rows | question or query, choices, answer or gold |

A `mapping.json` in the folder or beside the zip file (`{subject: {name, category}}`) gives subjects their names in the language of
the examination.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.data.problems import RowProblem
from luthier.data.sources import rows_of
from luthier.errors import UserError, did_you_mean
from luthier.recipe.schema import Source

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST = 1 << 28
"""Bytes of the largest file of a zip file that is read."""
_SPLIT = re.compile(r"(?:^|/)(dev|val|test)/([^/]+?)(?:_(?:dev|val|test))?\.csv$")


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        text: what is asked.
        choices: the texts to choose from.
        answer: which of them is right.
        origin: where it came from.
        subject: the file's name for its subject.
        open: the text is a beginning that the choices go on from, rather than a question.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    origin: str
    subject: str = ""
    open: bool = False


class Files:
    """The files of a folder or a zip file.

    Args:
        path: of either.

    Raises:
        UserError: there is neither.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_file() and zipfile.is_zipfile(self.path):
            self._zip = zipfile.ZipFile(self.path)
        elif not self.path.is_dir():
            hint = "Give the folder or the zip file, as it was published."
            raise UserError("no such folder or zip file", where=path, hint=hint)

    def names(self) -> list[str]:
        """Paths of all files, in order."""
        if self._zip:
            return sorted(name for name in self._zip.namelist() if not name.endswith("/"))
        return sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())

    def text(self, name: str) -> str:
        """The content of a file.

        Raises:
            UserError: it is not UTF-8, or too large.
        """
        if self._zip and self._zip.getinfo(name).file_size > LARGEST:
            raise UserError(f"`{name}` is larger than {LARGEST:,} bytes", where=str(self.path))
        raw = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"`{name}` is not UTF-8 ({error.reason})", where=str(self.path)) from None

    def titles(self) -> Mapping[str, Mapping[str, str]]:
        """Subject → `name` and `category`, where a `mapping.json` tells them."""
        beside = self.path.with_name("mapping.json")
        if self._zip is not None:
            text = beside.read_text("utf-8") if beside.is_file() else "{}"
        else:
            text = next((self.text(name) for name in self.names() if PurePosixPath(name).name == "mapping.json"), "{}")
        found = json.loads(text)
        return found if isinstance(found, dict) else {}


def subjects_of(files: Files, split: str, wanted: tuple[str, ...]) -> dict[str, list[Question]]:
    """The questions of one part of MMLU, C-Eval or CMMLU, by subject.

    Args:
        files: of the examination.
        split: `dev`, `val` or `test`.
        wanted: only these subjects; none means all.

    Raises:
        UserError: there is no such part or subject, or a row is not what it should be.
    """
    places = {found[2]: name for name in files.names() if (found := _SPLIT.search(name)) and found[1] == split}
    if not places:
        raise UserError(f"there is no `{split}/SUBJECT.csv` in it", where=str(files.path))
    for subject in wanted:
        if subject not in places:
            raise UserError(f"there is no subject `{subject}`", where=str(files.path), hint=did_you_mean(subject, places))
    chosen = {subject: name for subject, name in places.items() if not wanted or subject in wanted}
    return {subject: list(_lettered(files.text(name), f"{files.path}/{name}", subject)) for subject, name in chosen.items()}


def rows_in(path: str, part: str = "test") -> list[Question]:
    """The questions of a file of rows, or of the file of a folder whose name ends like `part`.

    Raises:
        UserError: a row is not what it should be.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        names = [file for file in sorted(place.rglob("*")) if re.search(rf"({part}|valid(ation)?|dev)\.\w+$", file.name.lower())]
        data = [file for file in names if file.suffix in (".jsonl", ".json", ".csv", ".parquet")]
        fitting = [file for file in data if file.stem.lower().endswith(part)] or data
        if not fitting:
            raise UserError(f"there is no file in it whose name ends with `{part}`", where=path, hint="Name the file itself.")
        place = fitting[0]
    labels = place.with_name(f"{place.stem}-labels.lst")
    answers = labels.read_text("utf-8").split() if labels.is_file() else []
    found = []
    for number, (origin, row) in enumerate(rows_of(Source(path=str(place)))):
        if isinstance(row, RowProblem):
            raise UserError(row.message, where=str(origin))
        if answers and isinstance(row, dict) and number < len(answers):
            row = {**row, "label": answers[number]}
        found.append(_question(row, str(origin)))
    return found


def _lettered(text: str, where: str, subject: str) -> Iterator[Question]:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    head = [cell.strip().casefold() for cell in rows[0]] if rows else []
    named = {"question", "a", "b"} <= set(head)
    letters = [letter for letter in LETTERS if letter.casefold() in head] if named else list("ABCD")
    columns = (
        [head.index(name) for name in ("question", *(letter.casefold() for letter in letters))] if named else [0, 1, 2, 3, 4]
    )
    answer = (head.index("answer") if "answer" in head else None) if named else 5
    if answer is None:
        raise UserError("the answers are not public", where=where, hint="Ask another part: `split=val`.")
    for number, row in enumerate(rows[1:] if named else rows, 2 if named else 1):
        if not row:
            continue
        if len(row) <= max(*columns, answer) or row[answer].strip() not in letters:
            raise UserError(f"question {number} has no answer among {', '.join(letters)}", where=where)
        question, *choices = (row[column].strip() for column in columns)
        yield Question(question, tuple(choices), letters.index(row[answer].strip()), f"{where}:{number}", subject)


def _question(row: Any, where: str) -> Question:
    """A row of any of the kinds above.

    Raises:
        UserError: it is none of them.
    """
    if not isinstance(row, dict):
        raise UserError("the row is no mapping", where=where)
    text: Any = row.get("question")
    choices: Any = row.get("choices")
    answer = _first(row, "answerKey", "answer", "gold", "label", "answer_index")
    begun, labels = False, list(LETTERS)
    if isinstance(text, dict):
        text, choices = text.get("stem"), text.get("choices")
    if text is None and "goal" in row:
        text, choices = row["goal"], [row.get("sol1"), row.get("sol2")]
    if text is None:
        text = _first(row, "query", "context", "ctx")
        begun = isinstance(text, str) and not text.startswith("Question: ")
        text = text.removeprefix("Question: ").rstrip("\n") if isinstance(text, str) else None
    if isinstance(choices, dict):
        choices, labels = choices.get("text"), [str(label) for label in choices.get("label", labels)]
    elif isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices):
        choices, labels = [choice.get("text") for choice in choices], [str(choice.get("label")) for choice in choices]
    if not isinstance(text, str) or not isinstance(choices, list | tuple) or not all(isinstance(one, str) for one in choices):
        known = ", ".join(f"`{key}`" for key in row)
        raise UserError(f"no question with choices in {known}", where=where, hint="A row has `question`, `choices` and `answer`.")
    return Question(text.strip(), tuple(choices), _place(answer, choices, labels, where), where, open=begun)


def _place(answer: Any, choices: Any, labels: list[str], where: str) -> int:
    """Which choice is right: a text of it, its letter, or its number from 0."""
    if isinstance(answer, str):
        if answer in choices:
            return list(choices).index(answer)
        if answer.strip() in labels[: len(choices)]:
            return labels.index(answer.strip())
    found = int(answer) if isinstance(answer, int) or (isinstance(answer, str) and answer.strip().isdecimal()) else -1
    if not 0 <= found < len(choices):
        raise UserError(f"the answer `{answer}` is none of the {len(choices)} choices", where=where)
    return found


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
