"""Requests made from our own OpenAPI description, right ones and wrong ones: each gets an answer, and none a traceback."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tests.serving.conftest import Running

FEW, MANY = 5, 60


def narrowed(description: dict[str, Any]) -> dict[str, Any]:
    """The description with the one model's name and with short answers, so that what fits it gets as far as the model."""
    found = copy.deepcopy(description)
    for schema in found["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name == "model":
                schema["properties"][name] = {"enum": ["tiny"]}
            elif name in ("max_tokens", "max_completion_tokens", "n", "best_of"):
                schema["properties"][name] = {"type": "integer", "minimum": 1, "maximum": 2}
            elif name == "stream":
                field.pop("anyOf", None)
    return found


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_every_request_is_answered(served: Running, caplog: pytest.LogCaptureFixture, count: int) -> None:
    schema = schemathesis.openapi.from_dict(narrowed(served.app.openapi()))
    statuses: Counter[tuple[str, int]] = Counter()

    def check(mode: GenerationMode, case: Any) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{served.port}")
        status, text = response.status_code, response.content.decode("utf-8")
        statuses[mode.value, status] += 1
        assert status < 500, text
        assert "Traceback" not in text
        if status >= 400:
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}

    quick = settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

    def ask(operation: Any, mode: GenerationMode) -> None:
        @quick
        @given(case=operation.as_strategy(generation_mode=mode))
        def asked(case: Any) -> None:
            check(mode, case)

        asked()

    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or operation.body:  # a name in a path cannot be of a wrong kind
                ask(operation, mode)
    refused = sum(number for (mode, status), number in statuses.items() if status >= 400)
    answered = sum(number for (_, status), number in statuses.items() if status < 400)
    assert answered >= 5  # of the rest, some names and numbers in a request have to fit each other
    assert refused >= (200 if count == MANY else 5 * count), statuses
    assert not [record for record in caplog.records if record.exc_info]
