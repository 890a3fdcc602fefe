"""The parts of a run, made from its recipe: tokenizer, template, dataset, policy, plan, optimizer.

Cheap checks come first: a mistake in the recipe or the data is told before a large model is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from luthier.chat import ChatTemplate
from luthier.data.batch import Drawn
from luthier.data.labels import with_labels
from luthier.data.loader import Batches, batches_of
from luthier.data.prepare import Dataset, Progress, prepare
from luthier.data.preview import coloured
from luthier.data.sides import CHOSEN, REJECTED
from luthier.data.stream_batches import StreamBatches
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.data.vocabulary import check_store
from luthier.engine.groups import Roles
from luthier.engine.optim import Optimizer
from luthier.engine.optimizers import kind_of
from luthier.engine.parallel import World
from luthier.engine.plan import DTYPES, Plan, Precision, batch_of, choose_precision, make_plan
from luthier.engine.reference import Reference
from luthier.errors import UserError
from luthier.generation.chat import ChatModel
from luthier.models.adapters import borrowed
from luthier.models.adapters.adalora import Allocator
from luthier.models.adapters.insert import adapter_config
from luthier.models.adapters.tokens import make_room
from luthier.models.balance import balance_weight
from luthier.models.checkpointing import set_checkpointing
from luthier.models.critic import ValueCritic
from luthier.models.float8 import check_float8, to_float8
from luthier.models.hub import fetch
from luthier.models.loading import Scoring, check_weights, embedding_rows, load_model, read_config
from luthier.models.low_rank import allocator_of
from luthier.models.methods import apply_method, rows_needed
from luthier.models.policy import Policy
from luthier.models.rope import reach
from luthier.models.score_head import FRESH, PROBLEMS, REWARD, Labels, is_scorer
from luthier.models.scorer import Scorer
from luthier.models.source import template_for, tokenizer_folder
from luthier.objectives import Objective, objective_of
from luthier.recipe.schema import PLAIN, SCORING, Classification, LoRA, Prefixed, Recipe, RopeScaling
from luthier.workshop.distillation import teach
from luthier.workshop.evaluation import Tasks
from luthier.workshop.loading import served_otherwise
from luthier.workshop.reinforcement import answer_room, critic_rates, keeps_distance, prepare_policy, steps_each
from luthier.workshop.watching import Sampler, Watchers

SIDES = {CHOSEN: ", the better answer", REJECTED: ", the worse answer"}
"""Label of a segment → what is said of it."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that writes itself with the template the model was trained with, so that serving renders the same text."""

    tokenizer: Tokenizer
    template: ChatTemplate | None

    def save(self, folder: Path) -> None:
        """Write the files that plain transformers loads."""
        self.tokenizer.save(folder, self.template.source if self.template else None)


@dataclass
class Assembled:
    """The parts of a run. `notes` are fallbacks taken, for the verdict."""

    tokenizer: Tokenizer
    template: ChatTemplate
    tokenizer_files: TokenizerFiles
    dataset: Dataset
    policy: Policy
    objective: Objective
    batches: Batches
    optimizer: Optimizer
    plan: Plan
    sampler: Sampler | None
    tasks: Tasks | None
    allocator: Allocator | None
    reference: Reference | None
    critic: ValueCritic | None
    notes: tuple[str, ...]


def assemble(
    recipe: Recipe,
    world: World,
    watchers: Watchers,
    *,
    pinned: str | None = None,
    cursor: Mapping[str, Any] | None = None,
    saved: Path | None = None,
    run: Path | None = None,
) -> Assembled:
    """Make all parts.

    Args:
        recipe: the recipe.
        world: the processes.
        watchers: hear what is being done.
        pinned: key of the token store that a resumed run learnt from.
        cursor: where its stream stood.
        saved: its checkpoint, whose values are loaded next.
        run: the run's folder, which holds a reference to the store.

    Raises:
        UserError: the recipe asks for something impossible, or the data is not what a resumed run learnt from.
    """
    section, data, stage, objective = recipe.model, recipe.data, recipe.stage.type, objective_of(recipe.stage)
    kind_of(recipe.train.optimizer)
    folder = fetch(section.path, hub=section.hub, revision=section.revision)
    prefix = recipe.method.pre_seq_len if isinstance(recipe.method, Prefixed) else 0
    _check_model(folder, data.max_length + answer_room(recipe), prefix, section.rope_scaling, scoring=stage in SCORING)
    precision = _precision(recipe, world)
    batch = batch_of(recipe.train, stage, data.max_length, world.size)
    tokenizer, template, dataset = prepare_data(recipe, progress=watchers.preparing, pinned=pinned, run=run)
    if template.note and stage not in PLAIN:
        watchers.note(template.note)
    if stage not in PLAIN and (warning := served_otherwise(template, tokenizer)):
        watchers.note(warning)
    known = partial(check_store, tokenizer=tokenizer, rows=_rows(recipe, folder, tokenizer))
    known(dataset.store)
    batches = batches_of(dataset, recipe, batch, cursor, known)
    _introduce(dataset, batches, tokenizer, watchers)
    scoring = None
    if stage in SCORING:
        recipe = _with_labels(recipe, dataset)
        objective, scoring = objective_of(recipe.stage), Scoring(_labels(recipe, folder), tokenizer.pad_id, recipe.train.seed)
    model = load_model(section, dtype=DTYPES[precision], device=world.device, scoring=scoring)
    if new := getattr(model, FRESH, ()):
        watchers.note(f"new and drawn at random: {', '.join(f'`{name}`' for name in new)}")
    policy = _policy(recipe, model, tokenizer, batches, saved)
    critic = prepare_policy(recipe, policy)
    teach(recipe, policy, tokenizer)
    watchers.note(policy.describe())
    if section.rope_scaling is not None and recipe.method.type not in ("full", "freeze"):
        watchers.note(
            "rotary positions are stretched, and an adapter's folder cannot say so: `luthier chat` and `luthier export merge` know it "
            "from the run, other servers of the adapter have to stretch the base model too"
        )
    packing = data.packing and policy.isolation.ok
    plan = make_plan(
        recipe,
        steps_per_epoch=steps_each(recipe) * (batches.steps_per_epoch or 0) or recipe.train.max_steps or 1,  # a stream: the run
        batch=batch,
        longest=dataset.longest + answer_room(recipe),
        packing=packing,
        validated=dataset.validation is not None or bool(recipe.evaluate.tasks),
        precision=precision,
        world=world,
    )
    sampler = None
    if recipe.evaluate.samples.prompts and world.main:
        sampler = Sampler(ChatModel(policy.model, tokenizer, template), recipe, watchers)
    tasks = None
    if recipe.evaluate.tasks:  # on every rank, so that a mistake ends all of them
        tasks = Tasks(recipe, ChatModel(policy.model, tokenizer, template), policy)
    notes = policy.notes + ((f"padded, because {policy.isolation.reason}",) if data.packing and not packing else ())
    return Assembled(
        tokenizer=tokenizer,
        template=template,
        tokenizer_files=TokenizerFiles(tokenizer, None if stage in PLAIN else template),
        dataset=dataset,
        policy=policy,
        objective=objective,
        batches=batches,
        optimizer=_optimizer(recipe, policy, critic, precision),
        plan=plan,
        sampler=sampler,
        tasks=tasks,
        allocator=allocator_of(model, recipe.method, plan.total_steps),
        reference=Reference(policy, recipe) if objective.reference or keeps_distance(recipe) else None,
        critic=critic,
        notes=notes,
    )


def prepare_data(
    recipe: Recipe, *, progress: Progress | None = None, pinned: str | None = None, run: Path | None = None
) -> tuple[Tokenizer, ChatTemplate, Dataset]:
    """Tokenizer, chat template and dataset of a recipe. Arguments are those of `data.prepare.prepare`."""
    tokenizer = load_tokenizer(tokenizer_folder(recipe.model)).extended(recipe.model.new_tokens)
    template = template_for(recipe, tokenizer)
    shown = None if recipe.stage.type in PLAIN else template
    return tokenizer, template, prepare(recipe, tokenizer, shown, progress=progress, pinned=pinned, run=run)


def _with_labels(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with the names of its labels, which may be in the data only."""
    if not isinstance(recipe.stage, Classification):
        return recipe
    return recipe.model_copy(update={"stage": with_labels(recipe.stage, dataset.store)})


def _labels(recipe: Recipe, folder: Path) -> Labels:
    """What the values of the recipe's model stand for, and the head that gives them."""
    stage = recipe.stage
    if not isinstance(stage, Classification):
        return REWARD
    width = stage.dense_width or read_config(folder, scoring=True).get_text_config().hidden_size
    return Labels(stage.labels, PROBLEMS[stage.task], (width,) * stage.dense_layers)


def _policy(recipe: Recipe, model: PreTrainedModel, tokenizer: Tokenizer, batches: Batches, saved: Path | None) -> Policy:
    """The model with its method applied."""
    section, method = recipe.model, recipe.method
    if section.new_tokens:
        make_room(model, tokenizer.vocab_size)
    trained = apply_method(
        model,
        method,
        seed=recipe.train.seed,
        adapter=fetch(section.adapter, hub=section.hub) if section.adapter else None,
        saved=saved,
        tokens=_ids(tokenizer, section.new_tokens, method.trainable_tokens) if isinstance(method, LoRA) else (),
        drawn=_first(batches),
    )
    if recipe.train.precision == "fp8":
        to_float8(model)
    set_checkpointing(model, recipe.train.activation_checkpointing)
    balance = balance_weight(model, recipe.train.router_aux_loss)
    kind = Scorer if is_scorer(model) else Policy
    return kind(model, trained, noise=recipe.train.neftune, balance=balance)


def _optimizer(recipe: Recipe, policy: Policy, critic: ValueCritic | None, precision: Precision) -> Optimizer:
    """The recipe's optimizer over what the policy and its critic train."""
    return Optimizer(
        policy.trainable.parameters | (critic.parameters if critic else {}),
        recipe.train,
        half=precision == "fp16",
        pure=precision == "pure_bf16",
        roles=Roles.of(policy.model),
        rates={**policy.trainable.rates, **critic_rates(recipe, critic)},
        adapters=adapter_config(policy.model) is not None or borrowed.holder_of(policy.model) is not None,
    )


def _ids(tokenizer: Tokenizer, new: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Ids of the tokens whose rows are trained, each once, in ascending order.

    Raises:
        UserError: a text is not one token.
    """
    found = set()
    for text in (*new, *wanted):
        ids = tokenizer.encode(text).ids.tolist()
        if len(ids) != 1:
            raise UserError(
                f"`{text}` is {len(ids)} tokens of this tokenizer, not one",
                where="method.trainable_tokens",
                hint="Add it to the vocabulary with `model.new_tokens`.",
            )
        found.add(ids[0])
    return tuple(sorted(found))


def _rows(recipe: Recipe, folder: Path, tokenizer: Tokenizer) -> int | None:
    """Tokens that the model in `folder` will have embeddings for when it is trained."""
    section = recipe.model
    rows = embedding_rows(read_config(folder, scoring=recipe.stage.type in SCORING))
    if rows is None:
        return None
    new = tokenizer.vocab_size if section.new_tokens else 0
    return max(rows, new, rows_needed(fetch(section.adapter, hub=section.hub)) if section.adapter else 0)


def _first(batches: Batches) -> Iterator[Drawn]:
    """What the first steps learn from, without taking a step; of a stream, no more than the next one."""
    if isinstance(batches, StreamBatches):
        yield batches.peek()
    else:
        yield from (batches(step) for step in range(batches.steps_per_epoch))


def _precision(recipe: Recipe, world: World) -> Precision:
    """Resolve the precision.

    Raises:
        UserError: `model.dtype` and `train.precision` contradict each other.
    """
    precision = choose_precision(recipe, world.device)
    if precision == "fp8":
        check_float8(world.device)
    named = recipe.model.dtype
    if named != "auto" and str(DTYPES[precision]).removeprefix("torch.") != named:
        raise UserError(
            f"weights in {named} and arithmetic in {recipe.train.precision} contradict each other",
            where="model.dtype",
            hint="Leave model.dtype out: the weights follow train.precision, and what is trained has float32 masters anyway.",
        )
    return precision


def _check_model(folder: Path, max_length: int, prefix: int, scaling: RopeScaling | None, *, scoring: bool) -> None:
    """Refuse what is no model, and a `max_length` beyond the positions that it has behind a learnt prefix, before the data is read."""
    read_config(folder, scoring=scoring)
    check_weights(folder)
    # As written, because transformers fills in a limit of its own where there is none.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit = reach(config, scaling)
    if limit is not None and max_length + prefix > limit:
        behind = f" behind a prefix of {prefix}" if prefix else ""
        raise UserError(
            f"{max_length}{behind} is beyond the model's {limit} positions",
            where="data.max_length",
            hint=f"Use at most {limit - prefix}, or stretch its positions with `model.rope_scaling`.",
        )


def _introduce(dataset: Dataset, batches: Batches, tokenizer: Tokenizer, watchers: Watchers) -> None:
    """Show the data report and the first row as the model sees it, supervised tokens marked."""
    for line in dataset.report.lines():
        watchers.note(line)
    if isinstance(batches, StreamBatches):
        store, first = batches.peek().store, 0
    else:
        store, first = dataset.store, int(np.min(dataset.train.segments))
    for segment in np.flatnonzero(store.group == store.group[first])[:2]:
        tokens, weight = store.segment(int(segment))
        shown = coloured(tokenizer, tokens, weight)
        told = SIDES.get(int(store.label[segment]), "")
        if (labels := store.brought(int(segment)).get("labels")) is not None:
            told = f", labelled {', '.join(labels) or 'nothing'}"
        watchers.note(f"first row ({store.origin(first)}){told}, learnt parts in ⟦ ⟧:")
        watchers.note(shown.plain, shown)
