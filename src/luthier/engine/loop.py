"""The step loop: read it from top to bottom.

    for each step:  pick the examples → lay them out → forward, loss, backward for each pass → sum over ranks → update
                    → tell the watchers → evaluate, sample, save when due → stop when asked

The loop never waits for the device inside a step. Loss, gradient norm and the non-finite flag of a step are read when the next one
has been launched, so watchers hear of a step one step late; before anything that needs the truth (evaluation, checkpoint, end) the
pending step is read at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier import faults
from luthier.data.batch import Batch, Drawn
from luthier.data.loader import Batches
from luthier.data.store import TokenStore
from luthier.data.units import Units
from luthier.engine.checkpoint import Checkpoints
from luthier.engine.diagnose import name_bad_rows
from luthier.engine.evaluate import Measured, evaluate
from luthier.engine.on_policy import OwnAnswers
from luthier.engine.optim import Optimizer, learning_rate
from luthier.engine.parallel import World
from luthier.engine.passes import batches_of_passes, denominators_of, looked_at, scored
from luthier.engine.plan import Plan
from luthier.engine.reference import Reference
from luthier.engine.rollout import Rollouts
from luthier.engine.signals import StopRequest, stop_on_signals
from luthier.engine.state import DROPOUT, LOSS_WINDOW, TrainState, fingerprint, reseed
from luthier.errors import UserError, did_you_mean
from luthier.generation.decode import evaluating
from luthier.models.adapters.adalora import Allocator
from luthier.models.policy import Policy
from luthier.objectives import Objective
from luthier.recipe.schema import Recipe
from luthier.runs.records import Callback, EvaluationRecord, StepRecord

Outcome = Literal["done", "stopped"]
LOWER = ("loss", "perplexity", "kl")
"""Numbers of an evaluation of which a lower one is better."""


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
        tasks: puts the recipe's tasks to the policy: `TASK/MEASURE` → value, and whether a higher one is better; on the main rank.
        allocator: moves ranks between the layers of an AdaLoRA adapter.
        reference: the policy as it was, where the objective needs one.
    """

    recipe: Recipe
    plan: Plan
    policy: Policy
    objective: Objective
    batches: Batches | OwnAnswers | Rollouts
    store: TokenStore
    validation: Units | None
    optimizer: Optimizer
    state: TrainState
    checkpoints: Checkpoints
    write_weights: Callable[[Path], None]
    world: World
    callbacks: Sequence[Callback] = ()
    sample: Callable[[int], None] | None = None
    tasks: Callable[[], Mapping[str, tuple[float, bool]]] | None = None
    allocator: Allocator | None = None
    reference: Reference | None = None
    executed: Executed = field(default_factory=Executed)


@dataclass(frozen=True, slots=True)
class Sums:
    """What the passes of a step add up besides gradients, on the device.

    Attributes:
        loss: scalar.
        by_source: float32, the objective's total of each source.
        metrics: float32, the objective's metrics in their order.
        balance: scalar, how unevenly a mixture's experts are used (`models.balance`).
    """

    loss: Tensor
    by_source: Tensor
    metrics: Tensor
    balance: Tensor

    @classmethod
    def zeros(cls, sources: int, metrics: int, device: torch.device) -> Sums:
        """Nothing yet."""
        return cls(*(torch.zeros(shape, device=device) for shape in ((), sources, metrics, ())))


@dataclass(frozen=True, slots=True)
class Pending:
    """A launched step whose device numbers have not been read yet.

    `seconds` is the time of its turn of the loop: launching it, and waiting for the step before. So a step's time is counted once, whether
    the device computes while the host goes on or not.
    """

    step: int
    grad_norm: Tensor
    bad: Tensor
    rate: float
    tokens: int
    supervised: int
    drawn: Drawn
    sums: Sums
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
    how: dict[str, Any] = {"micro_batch_tokens": plan.micro_batch_tokens, "world": world}
    drawn = looked_at(job.policy, job.objective, job.reference, drawn, packing=plan.packing, **how)
    denominators = denominators_of(job.objective, drawn)
    denominator = float(denominators.sum())
    rate = learning_rate(job.recipe.train, state.step, plan.total_steps)
    sums = Sums.zeros(len(denominators), len(job.objective.metrics), world.device)
    job.optimizer.begin(state.step)
    for index, _, batch in batches_of_passes(drawn, **how):
        reseed(DROPOUT, job.recipe.train.seed, state.step, index, world.rank)
        _forward_backward(job, batch, denominator, int(drawn.lengths.sum()), sums)
    if job.allocator is not None and world.main:
        (job.allocator.penalty() * job.optimizer.scale).backward()
    job.optimizer.reduce(world, sums.loss, sums.by_source, sums.metrics, sums.balance)
    if job.allocator is not None:
        job.allocator.observe(job.optimizer.gradients(), state.step + 1)
    update = job.optimizer.step(sums.loss, rate)
    state.step += 1
    if job.reference is not None:
        job.reference.follow(state.step)
    if job.allocator is not None:
        job.optimizer.switch_off(job.allocator.choose(state.step))
    whole = drawn.whole()
    tokens, supervised = int(whole.lengths.sum()), int(drawn.store.supervised[whole.segments].sum())
    return Pending(state.step, update.grad_norm, update.bad, rate, tokens, supervised, drawn, sums, denominators)


def _forward_backward(job: Job, batch: Batch, denominator: float, tokens: int, sums: Sums) -> None:
    """One pass: its gradients go to the masters' buffers, its share of the global loss and of what is told into `sums`."""
    packing, smoothing = job.plan.packing, job.recipe.train.label_smoothing
    scores = scored(job.policy, job.objective, job.reference, batch, packing=packing, smoothing=smoothing)
    found = job.objective(scores, batch)
    loss = found.total / denominator
    if job.batches.mixed:
        sums.by_source.index_add_(0, batch.source, found.segments)
    if job.objective.metrics:
        sums.metrics.add_(torch.stack([found.metrics[name].float() for name in job.objective.metrics]))
    minimised = loss  # how evenly experts are used is learnt beside it, and told apart
    if (balance := job.policy.balance) is not None:
        uneven = balance.take() / tokens
        sums.balance.add_(uneven.detach())
        minimised = loss + balance.weight * uneven
    (minimised * job.optimizer.scale if job.optimizer.half else minimised).backward()
    job.executed.real += len(batch)
    job.executed.computed += job.policy.computed_tokens(batch, packing=packing)
    sums.loss.add_(loss.detach())


def _read(job: Job, pending: Pending) -> None:
    """Wait for a launched step, count it and tell the watchers."""
    sums = pending.sums
    told = torch.stack([sums.loss, *(one.to(sums.loss) for one in (pending.grad_norm, pending.bad, sums.balance))])
    loss, norm, bad, balance, *rest = torch.cat([told, sums.metrics, sums.by_source.to(told)]).tolist()
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
        extra=_extra(job, pending, rest) | ({"router_balance": balance} if job.policy.balance else {}),
    )
    for callback in job.callbacks:
        callback.on_step(record)


def _extra(job: Job, pending: Pending, sums: Sequence[float]) -> dict[str, float]:
    """The objective's metrics of a step, and the loss of each source that was in it."""
    names, denominators = job.objective.metrics, pending.denominators.tolist()
    means = {name: total / sum(denominators) for name, total in zip(names, sums, strict=False)}
    told = dict(pending.drawn.told) | dict(job.objective.told(means))
    if job.batches.mixed:
        named = zip(pending.drawn.store.source_names, sums[len(names) :], denominators, strict=True)
        told |= {f"loss/{name}": total / share for name, total, share in named if share}
    return told


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
        by = "validation loss" if state.best_by == "loss" else f"`{state.best_by}`"
        return f"no better {by} since step {state.best_step} (evaluate.patience {patience})"
    return None


def _evaluate(job: Job) -> bool:
    """Measure the validation units and put the tasks; True when this is the best so far."""
    state, by = job.state, job.recipe.evaluate.metric
    with job.optimizer.averaged():
        measured = _measured(job, job.validation) if job.validation is not None else None
        told = _examined(job)
    value, higher = _decisive(job, measured, told)
    if state.best_by != by:  # a run that goes on by another measure begins to compare anew
        state.best_by, state.best_value, state.best_step, state.stale_evaluations = by, None, None, 0
    best = state.best_value is None or (value > state.best_value if higher else value < state.best_value)
    if best:
        state.best_value, state.best_step, state.stale_evaluations = value, state.step, 0
    else:
        state.stale_evaluations += 1
    record = EvaluationRecord(
        state.step,
        measured.loss if measured else None,
        measured.perplexity if measured else None,
        measured.accuracy if measured else None,
        best,
        measured.sources if measured else {},
        {**(measured.metrics if measured else {}), **{name: found for name, (found, _) in told.items()}},
        by,
    )
    for callback in job.callbacks:
        callback.on_evaluate(record)
    return best


def _examined(job: Job) -> Mapping[str, tuple[float, bool]]:
    """What the policy gets in the tasks now, on the main rank; nothing on the others."""
    if job.tasks is None or not job.world.main:
        return {}
    with evaluating(job.policy.model):
        return job.tasks()


def _decisive(job: Job, measured: Measured | None, told: Mapping[str, tuple[float, bool]]) -> tuple[float, bool]:
    """The value of `evaluate.metric`, and whether a higher one is better; the same on every rank.

    Raises:
        UserError: nothing of that name was measured.
    """
    by = job.recipe.evaluate.metric
    if "/" not in by and measured is not None:
        own = {"loss": measured.loss, "perplexity": measured.perplexity, **measured.metrics}
        if (value := own.get(by)) is None:
            raise UserError(f"the evaluation does not tell `{by}`", where="evaluate.metric", hint=did_you_mean(by, own))
        return value, by not in LOWER
    known = by in told or not job.world.main
    value, higher = told.get(by, (0.0, False))
    shared = torch.tensor([value, float(higher), float(known)], dtype=torch.float64)
    job.world.sum_in_place([shared])  # a tensor of the CPU; other ranks add nothing but that they wait
    if shared[2] < job.world.size:
        raise UserError(f"no task tells `{by}`", where="evaluate.metric", hint=did_you_mean(by, told))
    return float(shared[0]), bool(shared[1])


def _measured(job: Job, units: Units) -> Measured:
    """The loss on held-out units; of a stage that learns from the policy's own answers, what those earn."""
    if isinstance(job.batches, Rollouts):
        return job.batches.examine(job.store, units)
    return evaluate(
        job.policy,
        job.objective,
        job.store,
        units,
        reference=job.reference,
        micro_batch_tokens=job.plan.micro_batch_tokens,
        packing=job.plan.packing,
        world=job.world,
    )


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
            tensors |= job.reference.state() if job.reference else {}
            tensors |= job.batches.state(job.state.step) if isinstance(job.batches, Rollouts) else {}
            folder = job.checkpoints.save(job.state.step, job.write_weights, tensors, state)
        job.checkpoints.rotate(job.state.step, job.state.best_step)
        for callback in job.callbacks:
            callback.on_save(job.state.step, folder)
    job.world.barrier()
