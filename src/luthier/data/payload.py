"""What an example brings besides tokens, as JSON: a prompt what its answers are judged by, a pair its margin, a text its labels."""

from __future__ import annotations

import json
from typing import Any

from luthier.data.examples import Example, Labelled, Preference, Prompt


def payload_of(example: Example) -> bytes:
    """The payload of each segment of an example, in UTF-8; mostly there is none."""
    value: dict[str, Any] = {}
    if isinstance(example, Prompt):
        value = {"messages": example.messages, "reference": example.reference, "tools": example.tools}
    elif isinstance(example, Preference) and example.margin is not None:
        value = {"margin": example.margin}
    elif isinstance(example, Labelled):
        value = {"labels": example.labels}
    return json.dumps(value, ensure_ascii=False).encode() if value else b""
