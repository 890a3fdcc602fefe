"""From a data file and the name of a model to a file of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from luthier.data.problems import Problems
from luthier.data.questions import questions_of
from luthier.data.store_cache import content_digest
from luthier.errors import UserError
from luthier.generation.answer_file import AnswerFile
from luthier.generation.batch import read_prompts, write_answers_to
from luthier.generation.chat import ChatModel
from luthier.generation.constraint import guide
from luthier.generation.decode import SLOTS
from luthier.models.hub import fetch
from luthier.models.source import Source as ModelSource
from luthier.models.source import find_source
from luthier.recipe.schema import Source
from luthier.workshop.loading import load_chat

_WEIGHTS = (".safetensors", ".bin", ".json", ".model", ".jinja")


def answer_file(
    source: Source,
    out: Path,
    name: str,
    *,
    which: dict[str, Any],
    decoding: dict[str, Any],
    n: int = 1,
    system: str | None = None,
    thinking: bool | None = None,
    skip_bad: bool = False,
    restart: bool = False,
    slots: int = SLOTS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int, Problems]:
    """Answer every question of a data source, or those that the file does not hold yet.

    Args:
        source: of the questions.
        out: the file that is written.
        name: a run, model or adapter, as `load_chat` takes it.
        which: `checkpoint`, `base` and `adapter` of `load_chat`.
        decoding: fields of `Decoding`.
        n: answers to each question.
        system: for conversations that bring no system prompt.
        thinking: whether the model thinks first; None is as the template has it.
        skip_bad: leave out what cannot be answered instead of writing nothing.
        restart: begin anew.
        slots: answers written at once.
        progress: called with the number of answers that are done and that there are.

    Returns:
        How many answers there are now, how many of them were there before, and what was left out.

    Raises:
        UserError: a question cannot be read or answered; there is no such model; the file holds something else.
    """
    problems = Problems("skip" if skip_bad else "fail", remedy="leave them out with `--skip-bad`")
    talks = list(questions_of(source, problems))
    problems.finish()
    model = load_chat(name, **which)
    settings = model.decoding(**decoding)
    if settings.constraint:
        guide(
            settings.constraint, model.tokenizer, settings.stop_ids
        )  # a form that cannot be read is told before anything is written
    asked = read_prompts(model, talks, problems, system=system, thinking=thinking)
    problems.finish()
    if not asked:
        raise UserError("there is nothing to answer in it", where=source.path)
    beginning = f"{model_key(find_source(name, **which), model)}-{_hash([asdict(settings), sorted(settings.stop_ids), n])}"
    keys = [f"{beginning}-{question.key}" for question in asked for _ in range(n)]
    with AnswerFile.open(out, keys, restart=restart) as file:
        before = file.done
        progress(before, len(keys))
        write_answers_to(file, model, asked, settings, n=n, slots=slots, progress=progress)
        return file.done, before, problems


def model_key(source: ModelSource, model: ChatModel) -> str:
    """Twelve hexadecimal digits of a hash of weights, adapter, and the type they are computed in."""
    folders = [fetch(source.base.path, hub=source.base.hub, revision=source.base.revision), source.adapter]
    files = [sorted(folder.iterdir()) if folder else [] for folder in folders]
    parts = [[[file.name, content_digest(file)] for file in found if file.suffix in _WEIGHTS] for found in files]
    return _hash([parts, str(model.model.dtype), model.template.source])


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
