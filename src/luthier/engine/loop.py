"""The step loop: read it from top to bottom.

    for each step:  pick the examples → lay them out → forward, loss, backward for each pass → sum over ranks → update
                    → tell the watchers → evaluate, sample, save when due → stop when asked

The loop never waits for the device inside a step. Loss, gradient norm and the non-finite flag of a step are read when the next one
has been launched, so watchers hear of a step one step late; before anything that needs the truth (evaluation, checkpoint, end) the
pending step is read at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier import faults
from luthier.data.batch import Batch, Drawn, lay_out
from luthier.data.loader import Batches
from luthier.data.store import TokenStore
from luthier.data.units import Units
from luthier.engine.checkpoint import Checkpoints
from luthier.engine.diagnose import name_bad_rows
from luthier.engine.evaluate import evaluate
from luthier.engine.optim import Optimizer, learning_rate
from luthier.engine.parallel import World
from luthier.engine.plan import Plan
from luthier.engine.signals import StopRequest, stop_on_signals
from luthier.engine.state import DROPOUT, LOSS_WINDOW, TrainState, fingerprint, reseed
from luthier.models.adapters.adalora import Allocator
from luthier.models.policy import Policy
from luthier.objectives import Objective, score
from luthier.recipe.schema import Recipe
from luthier.runs.records import Callback, EvaluationRecord, StepRecord

Outcome = Literal["done", "stopped"]


@dataclass
class Executed:
    """What this process really computed, for the verdict: tokens with padding, and time inside steps."""

    real: int = 0
    computed: int = 0
    seconds: float = 0.0


@dataclass
class Job:
    """Everything the loop works with.

    Attributes:
        recipe: what to learn.
        plan: the numbers of the run.
        policy: the model.
        objective: what is minimised.
        batches: which segments each step learns from.
        store: holds the validation units; its key is what a resumed run asks for.
        validation: held-out units, or None.
        optimizer: the update rule with its masters and state.
        state: counters; where to begin.
        checkpoints: where to save.
        write_weights: writes the policy as an ordinary model folder, from float32 masters.
        world: the processes.
        callbacks: the watchers, on the main rank.
        sample: answers the recipe's prompts after the given step; on the main rank.
        allocator: moves ranks between the layers of an AdaLoRA adapter.
    """

    recipe: Recipe
    plan: Plan
    policy: Policy
    objective: Objective
    batches: Batches
    store: TokenStore
    validation: Units | None
    optimizer: Optimizer
    state: TrainState
    checkpoints: Checkpoints
    write_weights: Callable[[Path], None]
    world: World
    callbacks: Sequence[Callback] = ()
    sample: Callable[[int], None] | None = None
    allocator: Allocator | None = None
    executed: Executed = field(default_factory=Executed)


@dataclass(frozen=True, slots=True)
class Pending:
    """A launched step whose device numbers have not been read yet.

    `seconds` is the time of its turn of the loop: launching it, and waiting for the step before. So a step's time is counted once, whether
    the device computes while the host goes on or not.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    bad: Tensor
    rate: float
    tokens: int
    supervised: int
    drawn: Drawn
    by_source: Tensor
    denominators: NDArray[np.float64]
    seconds: float = 0.0


def run(job: Job) -> Outcome:
    """Train from `job.state.step` to `job.plan.total_steps`.

    Returns:
        `done`, or `stopped` when a signal or a watcher asked for it; either way the last state is saved.

    Raises:
        UserError: too many steps were not finite, or the disk is full.
    """
    with stop_on_signals() as request:
        job.policy.model.train()
        if job.state.step == 0:
            _sample(job)
        pending: Pending | None = None
        while job.state.step < job.plan.total_steps and not ended_early(job.recipe, job.state):
            began = time.perf_counter()
            launched = _step(job)
            if pending is not None:
                _read(job, pending)
            pending = replace(launched, seconds=time.perf_counter() - began)
            faults.point("loop.step")
            stop = _agree(job, request)
            if job.recipe.train.stop_at_loss is not None:  # the decision needs this step's loss
                _read(job, pending)
                pending = None
            finished = job.state.step >= job.plan.total_steps or bool(ended_early(job.recipe, job.state))
            measure, sample, save = _due(job, finished)
            if pending is not None and (measure or sample or save or stop or finished):
                _read(job, pending)
                pending = None
            improved = measure and _evaluate(job)
            if sample:
                _sample(job)
            enough = ended_early(job.recipe, job.state)
            if save or stop or finished or enough or improved:
                _save(job)
            if enough or finished:
                for callback in job.callbacks if enough and job.state.step < job.plan.total_steps else ():
                    callback.on_note(f"ended early after step {job.state.step}: {enough}")
                break
            if stop:
                return "stopped"
        return "done"


def _step(job: Job) -> Pending:
    """Launch one optimizer step."""
    plan, state, world = job.plan, job.state, job.world
    drawn = job.batches(state.step)
    lengths, places = drawn.lengths, np.arange(len(drawn.segments))
    passes = lay_out(places, lengths, drawn.groups, micro_batch_tokens=plan.micro_batch_tokens, ranks=world.size)[world.rank]
    denominators = _denominators(job, drawn)
    denominator = float(denominators.sum())
    rate = learning_rate(job.recipe.train, state.step, plan.total_steps)
    loss = torch.zeros((), device=world.device)
    by_source = torch.zeros(len(denominators), device=world.device)
    job.optimizer.begin(state.step)
    for index, rows in enumerate(passes):
        if len(rows):
            reseed(DROPOUT, job.recipe.train.seed, state.step, index, world.rank)
            loss += _forward_backward(job, drawn.batch(rows).to(world.device), denominator, by_source)
    if job.allocator is not None and world.main:
        (job.allocator.penalty() * job.optimizer.scale).backward()
    job.optimizer.reduce(world, loss, by_source)
    if job.allocator is not None:
        job.allocator.observe(job.optimizer.gradients(), state.step + 1)
    update = job.optimizer.step(loss, rate)
    state.step += 1
    if job.allocator is not None:
        job.optimizer.switch_off(job.allocator.choose(state.step))
    tokens, supervised = int(lengths.sum()), int(drawn.store.supervised[drawn.segments].sum())
    return Pending(state.step, loss, update.grad_norm, update.bad, rate, tokens, supervised, drawn, by_source, denominators)


def _forward_backward(job: Job, batch: Batch, denominator: float, by_source: Tensor) -> Tensor:
    """One pass: its share of the global loss, with gradients left in the masters' buffers, and its sums in `by_source`."""
    scores = score(job.policy, batch, packing=job.plan.packing, smoothing=job.recipe.train.label_smoothing)
    sums = job.objective(scores, batch)
    loss = sums.total / denominator
    if job.batches.mixed:
        by_source.index_add_(0, batch.source, sums.segments)
    (loss * job.optimizer.scale if job.optimizer.half else loss).backward()
    job.executed.real += len(batch)
    job.executed.computed += job.policy.computed_tokens(batch, packing=job.plan.packing)
    return loss.detach()


def _denominators(job: Job, drawn: Drawn) -> NDArray[np.float64]:
    """What the sums of this global batch are divided by, as shares of its sources; known before the first backward pass, on every rank."""
    store, kind, segments = drawn.store, job.objective.denominator, drawn.segments
    count, first = len(store.header.sources), slice(None)
    if kind == "tokens":
        weights = [float(store.segment(int(row))[1][1:].sum(dtype=np.float64)) for row in segments]
    elif kind == "constant":
        return np.eye(1, count)[0]
    else:  # an example is a unit, which the upper half of a group's number counts; a pair is a group
        _, first = np.unique(drawn.groups >> 32 if kind == "examples" else drawn.groups, return_index=True)
        weights = [1.0] * len(first)
    return np.bincount(store.source[segments[first]], weights, minlength=count).astype(np.float64)


def _read(job: Job, pending: Pending) -> None:
    """Wait for a launched step, count it and tell the watchers."""
    told = torch.stack([pending.loss, pending.grad_norm.to(pending.loss), pending.bad.to(pending.loss)])
    loss, norm, bad, *sums = torch.cat([told, pending.by_source.to(told)]).tolist()
    state, seconds = job.state, pending.seconds
    state.tokens += pending.tokens
    state.supervised_tokens += pending.supervised
    state.seconds += seconds
    job.executed.seconds += seconds
    if bad:
        state.skipped += 1
        state.bad_in_a_row += 1
        if state.bad_in_a_row >= job.recipe.train.max_bad_steps:
            store, segments = pending.drawn.store, pending.drawn.segments
            raise name_bad_rows(job.policy, store, segments, packing=job.plan.packing, steps=state.bad_in_a_row)
    else:
        state.bad_in_a_row = 0
        state.recent = [*state.recent, loss][-LOSS_WINDOW:]
    if pending.step % job.recipe.train.log_every and pending.step != job.plan.total_steps:
        return
    record = StepRecord(
        step=pending.step,
        epoch=pending.step / job.plan.steps_per_epoch,
        loss=loss,
        learning_rate=pending.rate,
        grad_norm=norm,
        tokens=pending.tokens,
        supervised_tokens=pending.supervised,
        seconds=seconds,
        tokens_per_second=pending.tokens / max(seconds, 1e-9),
        skipped=bool(bad),
        extra=_by_source(pending, sums) if job.batches.mixed else {},
    )
    for callback in job.callbacks:
        callback.on_step(record)


def _by_source(pending: Pending, sums: Sequence[float]) -> dict[str, float]:
    """The loss of each source that was in a step."""
    named = zip(pending.drawn.store.source_names, sums, pending.denominators.tolist(), strict=True)
    return {f"loss/{name}": total / share for name, total, share in named if share}


def _due(job: Job, finished: bool) -> tuple[bool, bool, bool]:
    """Whether to evaluate, to sample and to save after the step just taken."""
    plan, step = job.plan, job.state.step
    measure = plan.evaluate_every is not None and (finished or step % plan.evaluate_every == 0)
    sample = plan.sample_every is not None and (finished or step % plan.sample_every == 0)
    return measure, sample, step % plan.save_every == 0


def _agree(job: Job, request: StopRequest) -> bool:
    """Whether any rank was asked to stop; all ranks get the same answer."""
    wish = torch.tensor(float(request.asked or any(callback.wants_stop() for callback in job.callbacks)))
    job.world.sum_in_place([wish])  # a tensor of the CPU, so that no rank waits for its GPU
    return bool(wish.item())


def ended_early(recipe: Recipe, state: TrainState) -> str | None:
    """Why `stop_at_loss` or early stopping ends the run here, or None if it goes on."""
    target, patience, recent = recipe.train.stop_at_loss, recipe.evaluate.patience, state.recent
    if target is not None and len(recent) == LOSS_WINDOW and sum(recent) / LOSS_WINDOW < target:
        return f"the mean loss of {LOSS_WINDOW} steps is below {target} (train.stop_at_loss)"
    if patience is not None and state.stale_evaluations >= patience:
        return f"no better validation loss since step {state.best_step} (evaluate.patience {patience})"
    return None


def _evaluate(job: Job) -> bool:
    """Measure the validation units; True when this is the best so far."""
    assert job.validation is not None
    plan, state = job.plan, job.state
    with job.optimizer.averaged():
        measured = evaluate(
            job.policy,
            job.objective,
            job.store,
            job.validation,
            micro_batch_tokens=plan.micro_batch_tokens,
            packing=plan.packing,
            world=job.world,
        )
    best = state.best_loss is None or measured.loss < state.best_loss
    if best:
        state.best_loss, state.best_step, state.stale_evaluations = measured.loss, state.step, 0
    else:
        state.stale_evaluations += 1
    record = EvaluationRecord(state.step, measured.loss, measured.perplexity, measured.accuracy, best, measured.sources)
    for callback in job.callbacks:
        callback.on_evaluate(record)
    return best


def _sample(job: Job) -> None:
    """Answer the recipe's prompts on the main rank."""
    if job.sample is not None and job.world.main:
        job.policy.model.eval()
        with job.optimizer.averaged():
            job.sample(job.state.step)
        job.policy.model.train()


def _save(job: Job) -> None:
    """Write a checkpoint of the current step and delete those that are no longer needed."""
    if job.world.main:
        state = {
            "train": job.state.to_json(),
            "plan": job.plan.to_json(),
            "fingerprint": fingerprint(job.world.device),
            "store": job.store.key,
            "cursor": job.batches.cursor(),
        }
        with job.optimizer.averaged():
            tensors = job.optimizer.state() | (job.allocator.state() if job.allocator else {})
            folder = job.checkpoints.save(job.state.step, job.write_weights, tensors, state)
        job.checkpoints.rotate(job.state.step, job.state.best_step)
        for callback in job.callbacks:
            callback.on_save(job.state.step, folder)
    job.world.barrier()
