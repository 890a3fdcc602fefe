"""Another model as judge: of two answers to one question, which is better? Zheng et al. 2023, "Judging LLM-as-a-judge".

Each pair is shown twice, in both orders, because judges prefer the first or the second answer whatever they say. An order gives the
tuned model 1, ½ or 0; its score for a question is the mean of both orders, so a judge that only follows the order gives ½. `win_rate`
is the mean over all questions: ½ means that no model is better; `consistent` is the share of questions where both orders agree. What
the judge wrote is kept with each item. A question of which an order got no verdict is left out and counted.

A judge is a model, too: it likes long answers and its own manner. Its number says what this judge prefers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from luthier.errors import UserError
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.generate import question_of
from luthier.evaluation.perplexity import examples_of
from luthier.evaluation.statistics import mean
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.objectives.rewards.client import Client, NoReply
from luthier.recipe.sections.tasks import JudgeTask

ROOM = 1024
"""Most tokens that the judge writes."""
_VERDICT = re.compile(r"(?:VERDICT|结论)\W*(A|B|TIE|平)", re.IGNORECASE)
WORDS = {
    "en": (
        "You compare two answers to the same conversation. {criteria} Neither the order of the answers nor their length counts by itself. "
        "Say in a few sentences what speaks for each answer. Then end with one line: `VERDICT: A`, `VERDICT: B`, or `VERDICT: TIE`.",
        "What counts is whether the answer is right, helpful and clear.",
        "[Conversation]\n{question}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}",
    ),
    "zh": (
        "请比较同一段对话的两个回答。{criteria}回答的先后和长短本身都不算。先用几句话说明两个回答各自的优劣，"
        "最后单独一行给出结论：`VERDICT: A`、`VERDICT: B` 或 `VERDICT: TIE`（平）。",
        "看回答是否正确、有帮助、清楚。",
        "【对话】\n{question}\n\n【回答 A】\n{first}\n\n【回答 B】\n{second}",
    ),
}
"""Of each language: what the judge is told, what counts unless it is said, and how a pair is shown."""


class Said(NamedTuple):
    """What the judge wrote of one order, and whom it prefers: 1 the first answer, 0 the second, ½ neither, None if it did not say."""

    text: str
    first: float | None


class Judged:
    """The task: every model writes its answers, and `compare` asks the judge. Arguments are the settings.

    Raises:
        UserError: the address is none or is not allowed, or the token is not set.
    """

    def __init__(self, settings: JudgeTask) -> None:
        self.settings = settings
        self.measures = {"win_rate": True, "consistent": True}
        self.client = Client(
            f"{settings.url.rstrip('/')}/chat/completions",
            allow_private=settings.allow_private,
            token_env=settings.token_env,
            timeout=settings.timeout,
            retries=settings.retries,
            where=f"{settings.title()}: url",
        )

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """The answers of one model; nothing is measured yet."""
        settings = self.settings
        examples = examples_of(settings.path, settings.format, settings.columns, settings.limit)
        asked = [_question(example, settings.system) for example in examples]
        decoding = examinee.decoding(max_new_tokens=settings.max_new_tokens)
        prompts = [examinee.prompt(messages) for messages in asked]
        said, _ = examinee.answers(prompts, decoding, done=counting(progress, settings.title()))
        items = [
            {"origin": str(example.origin), "question": _shown(messages), "answer": one.text.strip()}
            for example, messages, one in zip(examples, asked, said, strict=True)
        ]
        return Outcome([], items, about={"rows": len(items), "judge": settings.model})

    def compare(self, base: Outcome, tuned: Outcome, progress: Progress) -> tuple[Outcome, Outcome]:
        """Ask the judge about each pair of answers, in both orders; the outcomes with their measures.

        Raises:
            UserError: the judge gave no verdict on any of them.
        """
        pairs = [
            (str(one["question"]), str(one["answer"]), str(other["answer"]))
            for one, other in zip(base.items, tuned.items, strict=True)
        ]
        orders = [(question, first, second) for question, *both in pairs for first, second in (both, both[::-1])]
        done = 0
        said: list[Said] = []
        with ThreadPoolExecutor(self.settings.workers, "judge") as pool:
            for verdict in pool.map(self._ask, orders):
                said.append(verdict)
                done += 1
                progress(f"{self.settings.title()}: {self.settings.model}", done, len(orders))
        scored = [_score(before, after) for before, after in zip(said[::2], said[1::2], strict=True)]
        kept = [score for score in scored if score is not None]
        if not kept:
            raise UserError(
                f"the judge gave no verdict: {said[0].text[:200]}",
                where=self.settings.title(),
                hint="Check `url`, `model` and `token_env`.",
            )
        notes = [f"{len(scored) - len(kept):,} of {len(scored):,} questions got no verdict"] if len(kept) < len(scored) else []
        agree = [float(one.first == 1 - other.first) for one, other in _whole(said)]
        judged = [
            {**item, "judge": [one.text, other.text], "score": score}
            for item, one, other, score in zip(tuned.items, said[::2], said[1::2], scored, strict=True)
        ]
        return (
            Outcome([mean("win_rate", [1 - win for win in kept])], base.items, (), base.about),
            Outcome([mean("win_rate", kept), mean("consistent", agree)], judged, notes, tuned.about),
        )

    def _ask(self, order: tuple[str, str, str]) -> Said:
        settings = self.settings
        told, usual, shown = WORDS["en" if settings.language == "auto" else settings.language]
        question, first, second = order
        body = {
            "model": settings.model,
            "temperature": 0,
            "max_tokens": ROOM,
            "messages": [
                {"role": "system", "content": told.format(criteria=settings.criteria or usual)},
                {"role": "user", "content": shown.format(question=question, first=first, second=second)},
            ],
        }
        try:
            reply = json.loads(self.client.post(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")))
            text = str(reply["choices"][0]["message"]["content"] or "")
        except NoReply as why:
            return Said(str(why), None)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Said("the reply is not that of an OpenAI-compatible server", None)
        return Said(text, verdict(text))


def verdict(text: str) -> float | None:
    """The last verdict in a judge's text: 1 for A, 0 for B, ½ for a tie; None if there is none."""
    found = _VERDICT.findall(text)
    return {"A": 1.0, "B": 0.0}.get(found[-1].upper(), 0.5) if found else None


def _score(before: Said, after: Said) -> float | None:
    """The tuned model's share: it stood second, then first."""
    return None if before.first is None or after.first is None else ((1 - before.first) + after.first) / 2


def _whole(said: Sequence[Said]) -> list[tuple[Any, Any]]:
    return [
        (one, other)
        for one, other in zip(said[::2], said[1::2], strict=True)
        if one.first is not None and other.first is not None
    ]


def _question(example: Any, system: str) -> Sequence[dict[str, Any]]:
    return question_of(example, system)[0]


def _shown(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as text; a question alone is itself."""
    talk = [message for message in messages if message["role"] != "system"]
    if len(talk) == 1:
        return str(talk[0].get("content") or "")
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in talk)


def build(settings: JudgeTask) -> Judged:
    """The task of these settings."""
    return Judged(settings)
