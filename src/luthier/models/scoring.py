"""Trained scorers at work: a reward model that says what an answer is worth, a classifier that says what kind of text it is.

A conversation or a text becomes the same tokens as in training: the same template, the same treatment of control tokens, the same way to
shorten what is too long. So a reward in a rollout, in Python and in the evaluation of the run that made the model are the same number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.batch import lay_out, make_batch
from luthier.data.encode import Encoder, Settings
from luthier.data.examples import Document, Example, Feedback, Origin
from luthier.data.problems import RowError
from luthier.data.store import Header, TokenStore, memory_store
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.errors import UserError
from luthier.models.adapters.format import SCORING, WEIGHTS_FILE, load_tensors, read_settings
from luthier.models.head import evaluating
from luthier.models.hub import fetch
from luthier.models.loading import Scoring, load_model, read_config
from luthier.models.methods import load_adapter
from luthier.models.rope import reach
from luthier.models.score_head import FRESH, KIND, Labels
from luthier.models.scorer import Scorer
from luthier.models.source import Source, find_source, template_for
from luthier.recipe.schema import PLAIN

TOGETHER = 8192
"""Tokens that are scored in one pass."""
LONGEST = 8192
"""Tokens of a text where neither a recipe nor the model names a limit."""
Messages = Sequence[Mapping[str, Any]]


class RewardModel:
    """Says what answers are worth.

        rewards = luthier.load("my-reward-model").score([[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]])

    Args:
        scorer: the model.
        encoder: makes tokens of conversations, as in training.
        name: what to call it in messages.
        system: system prompt for conversations that bring none.
    """

    def __init__(self, scorer: Scorer, encoder: Encoder, *, name: str = "model", system: str | None = None) -> None:
        self.scorer, self.encoder, self.name, self.system = scorer, encoder, name, system

    def score(self, conversations: Sequence[Messages]) -> list[float]:
        """The reward of each conversation's last answer.

        Args:
            conversations: messages with `role` and `content`, the last one of the assistant.

        Raises:
            UserError: the template refuses a conversation.
        """
        examples = [
            Feedback(self._begun(messages), True, Origin("conversation", number, number))
            for number, messages in enumerate(conversations, 1)
        ]
        return values_of(self.scorer, self.encoder, examples)[:, 0].tolist()

    def _begun(self, messages: Messages) -> tuple[dict[str, Any], ...]:
        """The messages, behind the system prompt if they bring none."""
        own = tuple(dict(message) for message in messages)
        bare = self.system and not any(message["role"] == "system" for message in own)
        return ({"role": "system", "content": self.system}, *own) if bare else own


class Prediction(NamedTuple):
    """What a classifier says of a text.

    Args:
        label: the name of the class, the names of all labels that fit, or a number.
        scores: of each label its probability, or of a regression the number.
    """

    label: str | tuple[str, ...] | float
    scores: dict[str, float]


class Classifier:
    """Says what kind of texts they are.

        [found] = luthier.load("my-classifier").predict(["What a film!"])
        print(found.label, found.scores)

    Args:
        scorer: the model.
        encoder: makes tokens of texts, as in training.
        name: what to call it in messages.

    Attributes:
        labels: names of the values, and what is solved.
    """

    def __init__(self, scorer: Scorer, encoder: Encoder, *, name: str = "model") -> None:
        self.scorer, self.encoder, self.name = scorer, encoder, name
        self.labels = Labels.of_config(scorer.model.config)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """What each text is.

        Raises:
            UserError: a text is empty.
        """
        values = values_of(self.scorer, self.encoder, [Document(text, Origin("text", n, n)) for n, text in enumerate(texts, 1)])
        return [self._said(row) for row in values]

    def _said(self, row: Tensor) -> Prediction:
        names, problem = self.labels.names, self.labels.problem
        if problem == "regression":
            return Prediction(float(row[0]), dict(zip(names, row.tolist(), strict=True)))
        several = problem == "multi_label_classification"
        scores = dict(zip(names, (row.sigmoid() if several else row.softmax(0)).tolist(), strict=True))
        if several:
            return Prediction(tuple(name for name, score in scores.items() if score > 0.5), scores)
        return Prediction(max(scores, key=scores.__getitem__), scores)


def load_scorer(
    run_or_model: str | Path,
    *,
    checkpoint: int | None = None,
    adapter: str | Path | None = None,
    device: torch.device | None = None,
) -> RewardModel | Classifier:
    """A trained scorer, from a run's name or folder, a sequence-classification folder of transformers, or an adapter folder of PEFT.

    Args:
        run_or_model: as above, or a hub id.
        checkpoint: the step whose weights to take instead of the final ones (runs only).
        adapter: an adapter to put on a model (models only).
        device: where it works. Default: the GPU if there is one.

    Raises:
        UserError: nothing of that name, or a model without a head that scores.
    """
    return scorer_of(find_source(run_or_model, adapter=adapter, checkpoint=checkpoint), device)


def load_reward_model(
    run_or_model: str | Path, *, checkpoint: int | None = None, device: torch.device | None = None
) -> RewardModel:
    """A trained scorer that gives conversations one number each. Arguments are those of `load_scorer`.

    Raises:
        UserError: as `load_scorer`; or a model with several labels.
    """
    source = find_source(run_or_model, checkpoint=checkpoint)
    scorer, tokenizer = _loaded(source, device)
    if scorer.labels != 1:
        raise UserError(
            f"this model has {scorer.labels} labels, a reward is one number", where=source.name, hint="Name a reward model."
        )
    return _reward_model(source, scorer, tokenizer)


def scorer_of(source: Source, device: torch.device | None = None) -> RewardModel | Classifier:
    """The scorer of a source: a reward model where it has one label that solves no problem. Errors are those of `load_scorer`."""
    scorer, tokenizer = _loaded(source, device)
    if scorer.labels == 1 and scorer.model.config.problem_type is None:
        return _reward_model(source, scorer, tokenizer)
    return Classifier(scorer, _encoder(source, tokenizer, "classify"), name=source.name)


def _reward_model(source: Source, scorer: Scorer, tokenizer: Tokenizer) -> RewardModel:
    system = source.recipe.data.system if source.recipe is not None else None
    return RewardModel(scorer, _encoder(source, tokenizer, "rm"), name=source.name, system=system)


def _loaded(source: Source, device: torch.device | None) -> tuple[Scorer, Tokenizer]:
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(source.tokenizer)
    scoring = scoring_of(source, tokenizer)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(source.base, dtype=dtype, device=device, scoring=scoring)
    if source.adapter is not None:
        load_adapter(model, source.adapter)
    elif getattr(model, FRESH, ()):
        raise UserError(
            f"this model has no `{getattr(model, FRESH)[-1]}`: it was not trained to score texts",
            where=source.name,
            hint="Train one with `stage: rm` or `stage: classify`.",
        )
    return Scorer(model.eval()), tokenizer


def scoring_of(source: Source, tokenizer: Tokenizer) -> Scoring:
    """How the model of a source is loaded to score texts."""
    return Scoring(_labels(source), tokenizer.pad_id)


def scores(source: Source) -> bool:
    """Whether what a source names was trained to score texts."""
    if source.adapter is not None:
        return read_settings(source.adapter).get("task_type") == SCORING
    kinds = json.loads((_folder(source) / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    return any(str(kind).endswith(KIND) for kind in kinds)


@torch.no_grad()
def values_of(scorer: Scorer, encoder: Encoder, examples: Sequence[Example]) -> Tensor:
    """What a scorer says of examples, float32 [N, labels] on the CPU.

    Raises:
        UserError: an example that the template refuses.
    """
    found = torch.zeros(len(examples), scorer.labels)
    if not examples:
        return found
    store = _store([_tokens(encoder, example) for example in examples], encoder.settings)
    rows = np.arange(len(examples))
    with evaluating(scorer.model):
        for places in lay_out(rows, store.lengths, rows, micro_batch_tokens=TOGETHER)[0]:
            found[places] = scorer.values(make_batch(store, places).to(scorer.device), packing=True).cpu()
    return found


def _tokens(encoder: Encoder, example: Example) -> NDArray[np.int32]:
    """The tokens of an example, shortened as in training where they are too many."""
    settings = encoder.settings
    try:
        texts = encoder.texts(example)
        _, encoded, _ = encoder.shortened(example, texts, encoder.encode(texts))
    except RowError as error:
        raise UserError(str(error), where=str(example.origin)) from error
    if settings.stage in PLAIN:
        return encoder.plain(encoded[0]).tokens
    ids = encoded[0].ids
    return ids[-settings.max_length :] if settings.truncate == "start" else ids[: settings.max_length]


def _store(rows: Sequence[NDArray[np.int32]], settings: Settings) -> TokenStore:
    """Token sequences as a store in memory, nothing of it supervised."""
    count = len(rows)
    tokens = np.concatenate(rows)
    columns: dict[str, Any] = {
        "tokens": tokens,
        "weight": np.zeros(len(tokens)),
        "offsets": np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
        **dict.fromkeys(("example", "group", "line"), np.arange(count)),
        **dict.fromkeys(("source", "file"), np.zeros(count)),
        "label": np.full(count, -1),
    }
    return memory_store(Header("memory", settings.stage, None, settings.max_length, 0, 0, ()), columns)


def _encoder(source: Source, tokenizer: Tokenizer, stage: str) -> Encoder:
    """What makes tokens of texts as the run did that made the model; of a model from elsewhere, as it came."""
    recipe = source.recipe
    template = None if stage in PLAIN else template_for(recipe, tokenizer, source.base.path)
    if recipe is None:
        content = json.loads((_folder(source) / "config.json").read_text(encoding="utf-8"))
        return Encoder(tokenizer, template, Settings(stage, reach(content, None) or LONGEST))
    data = recipe.data
    settings = Settings(
        stage, data.max_length, truncate=data.truncate, thinking=data.thinking, control_tokens=data.control_tokens
    )
    return Encoder(tokenizer, template, settings)


def _labels(source: Source) -> Labels:
    """The labels of a source; of an adapter from elsewhere only their number is known."""
    if source.adapter is None:
        return Labels.of_config(read_config(_folder(source), scoring=True))
    if (found := Labels.of_adapter(source.adapter)) is not None:
        return found
    tensors = load_tensors(source.adapter / WEIGHTS_FILE)
    heads = [tensor for key, tensor in tensors.items() if key.endswith(("score.weight", "classifier.weight"))]
    return Labels(tuple(f"LABEL_{number}" for number in range(len(heads[0]) if heads else 1)))


def _folder(source: Source) -> Path:
    return fetch(source.base.path, hub=source.base.hub, revision=source.base.revision)
