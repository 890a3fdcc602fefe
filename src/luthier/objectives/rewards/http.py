"""A reward that a server gives: a judge, a reward model elsewhere, anything that speaks JSON.

    POST {"answers": [{"messages": […], "answer": "…", "reference": "…", "tokens": 12, "finished": true}, …]}
    200  {"rewards": [0.5, null, …]}

One number for each answer, in their order; `null` is a bad reward. Answers go in batches, several at the same time (`client.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from luthier.objectives.rewards.base import Answer, Bad
from luthier.objectives.rewards.client import Client, NoReply
from luthier.recipe.sections.rewards import Http


class HttpReward:
    """Asks the server.

    Raises:
        UserError: the address is none, is private without leave, or the variable of the token is not set.
    """

    def __init__(self, settings: Http) -> None:
        self.settings = settings
        self.client = Client(
            settings.url,
            allow_private=settings.allow_private,
            token_env=settings.token_env,
            timeout=settings.timeout,
            retries=settings.retries,
            where="stage.rewards",
        )

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """The server's numbers; all answers of a request that failed are bad."""
        size = self.settings.batch_size
        batches = [answers[start : start + size] for start in range(0, len(answers), size)]
        with ThreadPoolExecutor(self.settings.workers, "reward-http") as pool:
            return [value for values in pool.map(self._ask, batches) for value in values]

    def _ask(self, answers: Sequence[Answer]) -> list[float | Bad]:
        body = json.dumps({"answers": [_written(answer) for answer in answers]}, ensure_ascii=False).encode("utf-8", "replace")
        try:
            return _values(self.client.post(body), len(answers))
        except NoReply as why:
            return [Bad(str(why))] * len(answers)


def _written(answer: Answer) -> dict[str, Any]:
    return {
        "messages": list(answer.messages),
        "answer": answer.text,
        "reference": answer.reference,
        "tokens": answer.tokens,
        "finished": answer.finished,
    }


def _values(reply: bytes, count: int) -> list[float | Bad]:
    try:
        said = json.loads(reply)
    except (ValueError, RecursionError):
        return [Bad("the reply is not JSON")] * count
    values = said.get("rewards") if isinstance(said, dict) else None
    if not isinstance(values, list):
        return [Bad("the reply has no list `rewards`")] * count
    if len(values) != count:
        return [Bad(f"the reply has {len(values)} rewards for {count} answers")] * count
    return [Bad("the server gives null") if value is None else value for value in values]


def build(settings: Http) -> HttpReward:
    """The reward of these settings."""
    return HttpReward(settings)
