"""Tasks of lm-evaluation-harness (EleutherAI), answered by a model of Luthier: its whole catalogue, its prompts, its metrics.

The library asks a model for three things: the likelihood of a continuation, the likelihood of a whole text, and an answer. All of
them are given as everywhere here, packed and without full logits. Where a metric is a mean of what each item gave, the items are
kept, so that it has an interval and can be paired; any other metric is the library's number alone. Data sets come from where the
library finds them, mostly the Hugging Face hub.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.likelihood import windows
from luthier.evaluation.statistics import Measure, mean
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.recipe.sections.tasks import HarnessTask

SHARES = ("acc", "exact_match", "em", "f1", "mcc", "pass", "acc_norm", "acc_bytes")
"""Beginnings of names of metrics that are told in per cent."""


class Harness:
    """The task. Arguments are its settings.

    Raises:
        UserError: lm_eval is not installed.
    """

    measures: Mapping[str, bool] | None = None  # the library tells them with its results

    def __init__(self, settings: HarnessTask) -> None:
        self.settings = settings
        _library("lm_eval")

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        settings = self.settings
        found = self._evaluated(examinee, progress)
        subtasks = {name: values for name, values in found["results"].items() if name in found.get("samples", {})}
        higher = {name: known for known in found.get("higher_is_better", {}).values() for name, known in known.items()}
        measures: list[Measure] = []
        items: list[dict[str, Any]] = []
        for subtask, values in subtasks.items():
            prefix = f"{subtask}/" if len(subtasks) > 1 else ""
            samples = found["samples"][subtask]
            for key, value in values.items():
                metric, _, way = key.partition(",")
                if isinstance(value, int | float) and way and not metric.endswith("_stderr"):
                    name = prefix + (metric if way == "none" else f"{metric} ({way})")
                    measures.append(
                        _measure(name, metric, float(value), _of(samples, metric, way), higher.get(metric) is not False)
                    )
            items += [{"origin": f"{subtask}:{sample['doc_id']}", **_told(sample)} for sample in samples]
        shots = next(iter(found.get("n-shot", {}).values()), settings.shots)
        return Outcome(measures, items, about={"rows": len(items), "shots": shots})

    def _evaluated(self, examinee: Examinee, progress: Progress) -> Mapping[str, Any]:
        """What the library says.

        Raises:
            UserError: it does not know the task, or cannot get its data.
        """
        settings = self.settings
        evaluator = _library("lm_eval.evaluator")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        try:
            found = evaluator.simple_evaluate(
                model=model_for(examinee, progress, settings.title()),
                tasks=[settings.task],
                num_fewshot=settings.shots,
                limit=settings.limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (KeyError, OSError, ValueError, ConnectionError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            hint = "`lm-eval ls tasks` lists what there is; most data comes from the Hugging Face hub."
            raise UserError(f"lm_eval cannot do this task: {said}", where=f"lm_eval:{settings.task}", hint=hint) from error
        return found or {"results": {}}


def model_for(examinee: Examinee, progress: Progress, title: str) -> Any:
    """A model as the library asks for it."""
    base: Any = _library("lm_eval.api.model").LM

    class Adapter(base):  # made here, because its base is there only where the library is
        """Answers the library's requests."""

        def __init__(self) -> None:
            super().__init__()
            self.done = counting(progress, title)

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            passages = [examinee.passage(*request.args) for request in requests]
            return [(one.logprob, one.greedy) for one in examinee.likelihoods(passages, done=self.done)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [list(windows(examinee.tokens(request.args[0]), examinee.first, examinee.longest)) for request in requests]
            said = iter(examinee.likelihoods([part for text in texts for part in text], done=self.done))
            return [sum(next(said).logprob for _ in text) for text in texts]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            answers = [""] * len(requests)
            alike: dict[tuple[Any, ...], list[int]] = {}
            for place, request in enumerate(requests):
                alike.setdefault(_wanted(request.args[1]), []).append(place)
            for (stops, room, temperature, top_p), places in alike.items():
                settings = examinee.decoding(
                    plain=True, max_new_tokens=room, stop_strings=stops, temperature=temperature, top_p=top_p
                )
                prompts = [examinee.tokens(requests[place].args[0]) for place in places]
                for place, answer in zip(places, examinee.answers(prompts, settings, done=self.done)[0], strict=True):
                    answers[place] = answer.text
            return answers

    return Adapter()


def _wanted(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float, float]:
    """Stop strings, longest answer, temperature and top-p of a request."""
    until = settings.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    room = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or 256)
    sampled = bool(settings.get("do_sample"))
    temperature = float(settings.get("temperature") or 0.0) if sampled else 0.0
    return tuple(stop for stop in stops if stop), room, temperature, float(settings.get("top_p") or 1.0) if sampled else 1.0


def _of(samples: Sequence[Mapping[str, Any]], metric: str, way: str) -> list[Any]:
    """What each item gave for a metric under one of the task's ways to read answers."""
    return [sample.get(metric) for sample in samples if sample.get("filter", "none") == way]


def _measure(name: str, metric: str, value: float, given: Sequence[Any], higher: bool) -> Measure:
    percent = metric.startswith(SHARES)
    numbers = [float(one) for one in given if isinstance(one, bool | int | float)]
    if numbers and len(numbers) == len(given) and abs(float(np.mean(numbers)) - value) < 1e-6:
        return mean(name, numbers, higher=higher, percent=percent)
    return Measure(name, np.zeros((0, 0)), higher=higher, percent=percent, known=value)


def _told(sample: Mapping[str, Any]) -> dict[str, Any]:
    """An item of the library as plain data: what was asked, what was said, what is right."""
    arguments: Any = sample.get("arguments") or ""
    first: Any = next(iter(arguments.values()), "") if isinstance(arguments, dict) else arguments[0] if arguments else ""
    if isinstance(first, dict):
        first = [first.get("arg_0", "")]
    question = first[0] if isinstance(first, list | tuple) and first else first
    return {
        "question": str(question),
        "answer": str(sample.get("filtered_resps")),
        "reference": str(sample.get("target")),
    }


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            "tasks of type `lm_eval` need the package lm_eval", hint="Install it with `pip install 'luthier[lm_eval]'`."
        ) from None


def build(settings: HarnessTask) -> Harness:
    """The task of these settings."""
    return Harness(settings)
