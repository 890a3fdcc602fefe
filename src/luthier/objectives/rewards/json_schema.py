"""1 where the answer is JSON that fits a schema, else 0: calls of functions, extracted facts, anything that a program reads next.

The schema is a file, stands in the recipe, or is each prompt's own reference. The answer may be the JSON alone or hold it in a fenced
block. Validation is the jsonschema library's, in the draft that `$schema` names (2020-12 if none); references to other addresses are
not followed, so no schema opens a connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import regex

from luthier.data.textfile import shown
from luthier.errors import UserError
from luthier.objectives.rewards.base import NO_REFERENCE, Answer, Bad
from luthier.objectives.rewards.fenced import last_block
from luthier.objectives.rewards.texts import SECONDS
from luthier.recipe.sections.rewards import JsonSchema


class NotJson(ValueError):
    """A text that is no JSON."""


class JsonSchemaReward:
    """Validates each answer.

    Raises:
        UserError: jsonschema is not installed, or the schema cannot be read or is none.
    """

    def __init__(self, settings: JsonSchema) -> None:
        library()
        self.parsed = settings.parsed
        self.common = _of_the_recipe(settings)
        self._own = lru_cache(maxsize=1024)(_validator)

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """1, `parsed`, or 0; bad where the reference should be a schema and is none, or where validating goes too deep."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float | Bad:
        validator = self.common
        if validator is None:
            if answer.reference is None:
                return NO_REFERENCE
            try:
                validator = self._own(answer.reference)
            except ValueError as error:
                return Bad(f"the reference is not a JSON schema: {error}")
        try:
            value = parsed(answer.text)
        except NotJson:
            return 0.0
        try:
            return 1.0 if validator.is_valid(value) else self.parsed
        except Exception as error:  # a schema may refer to what is not there, or turn in a circle
            return Bad(f"the schema cannot be used: {type(error).__name__}: {str(error)[:200]}")


def parsed(text: str) -> Any:
    """The JSON value that an answer is, or that its last fenced block is.

    Raises:
        NotJson: neither is JSON. `NaN` and `Infinity` are not.
    """
    for part in (text, last_block(text)):
        if part is not None:
            try:
                return json.loads(part, parse_constant=_refuse)
            except (ValueError, RecursionError):
                continue
    raise NotJson


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _of_the_recipe(settings: JsonSchema) -> Any | None:
    if not settings.file and not settings.inline:
        return None
    where = shown(Path(settings.file)) if settings.file else "stage.rewards"
    try:
        return _validator(Path(settings.file).read_text("utf-8") if settings.file else json.dumps(settings.inline))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=where) from None
    except ValueError as error:
        raise UserError(f"is not a JSON schema: {error}", where=where) from None


def _validator(schema: str) -> Any:
    """jsonschema's validator of a schema.

    Raises:
        ValueError: it is no schema; says why, in one line.
    """
    jsonschema = library()
    from referencing import Registry

    try:
        value = json.loads(schema)
        if not isinstance(value, dict | bool):
            raise ValueError("a schema is a mapping")
        kind = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
        kind.check_schema(value)
    except jsonschema.SchemaError as error:
        raise ValueError(error.message.splitlines()[0][:200]) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return jsonschema.validators.extend(kind, {"pattern": _pattern})(value, registry=Registry())


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Any]:
    """The keyword `pattern`, with a limit of time."""
    if isinstance(value, str) and not regex.search(pattern, value, timeout=SECONDS):
        yield library().ValidationError(f"{value!r} does not match {pattern!r}")


def library() -> Any:
    """jsonschema.

    Raises:
        UserError: it is not installed.
    """
    try:
        import jsonschema
    except ImportError:
        raise UserError(
            "`json_schema` needs the package jsonschema",
            where="stage.rewards",
            hint="Install it with `pip install 'luthier[rewards]'`.",
        ) from None
    return jsonschema


def build(settings: JsonSchema) -> JsonSchemaReward:
    """The reward of these settings."""
    return JsonSchemaReward(settings)
