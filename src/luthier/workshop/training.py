"""`train` and `resume`: recipe → data → model → plan → engine → what came out.

A new run and a resumed one take the same way; the only difference is whether a checkpoint is laid over the fresh start. Resume takes
everything that rounding depends on from the checkpoint (micro-batching, precision, threads) and may change only what does not touch
the past: how far to go, and what to report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier.data.loader import Batches
from luthier.data.report import DataReport
from luthier.data.stream_batches import StreamBatches
from luthier.engine.checkpoint import Checkpoints, Saved, publish_final, read_state
from luthier.engine.loop import Job, ended_early, run
from luthier.engine.on_policy import OwnAnswers
from luthier.engine.parallel import World, start_world
from luthier.engine.plan import Plan
from luthier.engine.precomputed import precomputed, reference_key
from luthier.engine.rollout import Rollouts
from luthier.engine.state import TrainState, fingerprint
from luthier.engine.verdict import verdict
from luthier.errors import Stopped, UserError
from luthier.files import write_atomic, write_json
from luthier.generation.chat import ChatModel
from luthier.models.critic import PREFIX as CRITIC
from luthier.recipe.load import apply_overrides, dump_recipe, load_recipe, placed, recipe_from
from luthier.recipe.pipeline import is_pipeline
from luthier.recipe.schema import Recipe
from luthier.runs.environment import environment
from luthier.runs.folder import RunFolder, create_run, find_pipeline, find_run, free_name
from luthier.runs.reader import RunReader
from luthier.runs.records import Callback, StartInfo
from luthier.runs.writer import RunWriter
from luthier.workshop.assembly import Assembled, assemble
from luthier.workshop.distillation import own_answers
from luthier.workshop.pipeline import Start, execute, new_pipeline, old_pipeline
from luthier.workshop.reinforcement import answer_room, learns_from_itself, rollouts_of
from luthier.workshop.run import Run
from luthier.workshop.watching import Watchers

RESUMABLE = ("train.max_steps", "train.epochs", "train.log_every", "train.stop_at_loss", "evaluate.", "checkpoint.", "report_to")
"""Keys, or beginnings of keys, that `resume` may change."""


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Run:
    """Execute a recipe as a new run; of a recipe of several stages, one run after the other.

    Args:
        recipe: a recipe, a recipe file, the name of a shipped recipe, or a mapping of the same form.
        overrides: `key.sub=value`, laid over the recipe.
        name: name of the run, in place of the recipe's.
        callbacks: watchers of your own.
        progress: show the run on the terminal.

    Returns:
        The finished run, that of the last stage.

    Raises:
        UserError: anything that can be mended in the recipe, the data or the machine; nothing was lost.
        Stopped: the run was interrupted and can be resumed.
    """
    if not isinstance(recipe, Recipe) and is_pipeline(recipe):
        return execute(new_pipeline(recipe, overrides, name), _start(callbacks, progress), _teller(callbacks, progress))
    resolved = _read(recipe, overrides)
    stem = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    with placed(recipe, resolved):
        world = start_world()
        watchers = _watchers(resolved, callbacks, progress, world)  # before the folder is made: a tracker may be missing
        folder = _claim(resolved, name or resolved.name, stem, world)
        resolved = resolved.model_copy(update={"name": folder.name})
        return _execute(resolved, folder, None, world, watchers)


def resume(
    run_or_name: Run | str | Path, *, overrides: Sequence[str] = (), callbacks: Sequence[Callback] = (), progress: bool = True
) -> Run:
    """Carry a run on from its last good checkpoint; `train.max_steps` extends a finished one.

    The result is what the uninterrupted run would have given: bit for bit on the same machine and versions. When the number of steps
    changes, the learning-rate schedule is laid out anew over the new total.

    Args:
        run_or_name: the run, its name or its folder.
        overrides: `key.sub=value` for what may change: how far to train, evaluation, checkpoints, reports.
        callbacks: watchers of your own.
        progress: show the run on the terminal.

    Raises:
        UserError: no such run, it is running, it is complete, or an override would change what was already learnt.
        Stopped: it was interrupted again.
    """
    if not isinstance(run_or_name, Run) and (stages := find_pipeline(run_or_name)):
        if overrides:
            raise UserError(
                "are for one run, and this is a pipeline of several", where=overrides[0], hint=f"Name one: `{stages.name}/STAGE`."
            )
        return execute(old_pipeline(stages), _start(callbacks, progress), _teller(callbacks, progress))
    folder = run_or_name.folder if isinstance(run_or_name, Run) else find_run(run_or_name)
    recipe = _extended(folder, overrides)
    status = RunReader(folder).status()
    if status.state == "done":
        _check_extension(folder, recipe, status.step, overrides)
    world = start_world()
    earlier = Checkpoints(folder.checkpoints_folder, recipe.checkpoint.keep)
    return _execute(recipe, folder, earlier, world, _watchers(recipe, callbacks, progress, world))


def _start(callbacks: Sequence[Callback], progress: bool) -> Start:
    """Trains the stages of a pipeline in this process."""

    def start(recipe: Recipe, going_on: bool) -> None:
        if going_on:
            resume(Path(recipe.output) / str(recipe.name), callbacks=callbacks, progress=progress)
        else:
            train(recipe, callbacks=callbacks, progress=progress)

    return start


def _teller(callbacks: Sequence[Callback], progress: bool) -> Callable[[str], None]:
    """Says which stage begins, to those who watch."""

    def tell(sentence: str) -> None:
        for callback in callbacks:
            callback.on_note(sentence)
        if progress:
            print(sentence, file=sys.stderr)

    return tell


def _read(recipe: Recipe | str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, str | Path):
        return load_recipe(recipe, overrides)
    mapping = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    return recipe_from(apply_overrides(mapping, overrides), Path.cwd())


def _watchers(recipe: Recipe, callbacks: Sequence[Callback], progress: bool, world: World) -> Watchers:
    """Those who watch the run: the recipe's and the caller's on the main rank, nobody on the others."""
    return Watchers.of(recipe, callbacks, progress=progress) if world.main else Watchers()


def _claim(recipe: Recipe, name: str | None, stem: str, world: World) -> RunFolder:
    """The folder of the new run; only the main rank makes it."""
    if name is None:
        name = free_name(recipe.output, stem)
    return create_run(recipe.output, name) if world.main else RunFolder(Path(recipe.output) / name)


def _extended(folder: RunFolder, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with the overrides of a resume.

    Raises:
        UserError: one of them would change the past.
    """
    before = load_recipe(folder.recipe)
    after = recipe_from(apply_overrides(before.model_dump(mode="json"), overrides), Path.cwd())
    old, new = _flat(before.model_dump()), _flat(after.model_dump())
    for key in sorted(old.keys() | new.keys()):
        mended = key == "data.on_error" and before.data.streaming  # a bad row is met on the way, it ends no preparation
        if old.get(key) != new.get(key) and not (mended or key.startswith(RESUMABLE)):
            raise UserError("cannot change when a run is resumed", where=key, hint="Start a new run with `luthier train`.")
    return after


def _flat(values: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(values, dict):
        return {key: values}
    return {name: leaf for part, value in values.items() for name, leaf in _flat(value, f"{key}.{part}" if key else part).items()}


def _execute(recipe: Recipe, folder: RunFolder, earlier: Checkpoints | None, world: World, watchers: Watchers) -> Run:
    """Run a recipe in its folder, from the start or from the last good of `earlier` checkpoints."""
    with _writer(folder, watchers, world) as writer:
        if earlier and writer:  # only who holds the run's lock may touch what another process could be writing
            earlier.clean()
        if writer and not earlier:  # before anything that takes long: a run killed while it tokenises can be resumed too
            write_atomic(folder.recipe, dump_recipe(recipe))
        saved = earlier.last_good(watchers.note) if earlier else None
        if earlier and not saved:
            watchers.note("no usable checkpoint: starting from the beginning")
        if saved:
            torch.set_num_threads(saved.state["plan"]["threads"])
        before = saved.state if saved else {}
        pinned, cursor = before.get("store"), before.get("cursor")
        parts = assemble(
            as_before(recipe, saved),
            world,
            watchers,
            pinned=pinned,
            cursor=cursor,
            saved=saved.folder if saved else None,
            run=folder.path,
        )
        with closing(parts.batches):
            job = _job(recipe, folder, parts, saved, world, watchers)
            if writer:
                _record(writer, recipe, parts, job, saved)
            with _memory():
                outcome = run(job)
        _finish(job, parts, folder, outcome, watchers, writer)
    if outcome == "stopped":
        raise Stopped(f"Stopped after step {job.state.step} and saved. Carry on with: luthier resume {folder.reference}")
    return Run(folder)


def as_before(recipe: Recipe, saved: Saved | None) -> Recipe:
    """The recipe with what is left to the machine (precision, examples a step from its ranks) as the run began with it."""
    if saved is None:
        return recipe
    plan = Plan(**saved.state["plan"])
    batch = {"batch_size": plan.batch_size, "batch_tokens": plan.batch_tokens}
    derived = {"per_device_batch_size": None, "gradient_accumulation_steps": None}
    train = recipe.train.model_copy(update={"precision": plan.precision, **batch, **derived})
    return recipe.model_copy(update={"train": train})


@contextmanager
def _memory() -> Iterator[None]:
    """Tell in one line that the GPU's memory does not suffice, and what costs least to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory does not suffice; what was saved before is intact",
            where="train.micro_batch_tokens",
            hint="Lower it, set train.activation_checkpointing=full, or use a smaller data.max_length or a quantised base.",
        ) from error


@contextmanager
def _writer(folder: RunFolder, watchers: Watchers, world: World) -> Iterator[RunWriter | None]:
    """The run folder's writer on the main rank, None on the others; watchers hear of a failure."""
    if not world.main:
        yield None
        return
    with RunWriter(folder) as writer:
        watchers.keep(writer)
        try:
            yield writer
        except BaseException as error:
            watchers.ended("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise


def _job(recipe: Recipe, folder: RunFolder, parts: Assembled, saved: Saved | None, world: World, watchers: Watchers) -> Job:
    """The engine's job, with the checkpoint laid over it."""
    plan, state = parts.plan, TrainState()
    if saved:
        before = Plan(**saved.state["plan"])
        plan = replace(plan, micro_batch_tokens=before.micro_batch_tokens, packing=before.packing, threads=before.threads)
        state = TrainState.from_json(saved.state["train"])
        parts.policy.load(saved.folder)
        if parts.critic is not None:
            parts.critic.load(saved.folder / "resume")
        parts.optimizer.load(saved.tensors)
        if parts.allocator is not None:
            parts.allocator.load(saved.tensors)
        if parts.reference is not None:
            parts.reference.load(saved.tensors)
        if (now := fingerprint(world.device)) != saved.state["fingerprint"]:
            changed = ", ".join(key for key, value in now.items() if value != saved.state["fingerprint"].get(key))
            watchers.note(f"resumed elsewhere ({changed} changed): equal to the uninterrupted run, but not bit for bit")
        if state.step > plan.total_steps:
            raise _complete(folder, state.step)
    if parts.reference is not None:
        _precompute(recipe, parts, plan, world, watchers)
    batches: Batches | OwnAnswers | Rollouts = parts.batches
    chat = ChatModel(parts.policy.model, parts.tokenizer, parts.template) if answer_room(recipe) else None
    if chat and learns_from_itself(recipe):
        batches = rollouts_of(recipe, parts.batches, parts.policy, chat, parts.reference, plan, world, watchers)
        if saved:
            batches.load(saved.state["cursor"], saved.tensors)
    elif chat:
        batches = own_answers(recipe, parts.batches, parts.policy, chat, world)
    return Job(
        recipe=recipe,
        plan=plan,
        policy=parts.policy,
        objective=parts.objective,
        batches=batches,
        store=parts.dataset.store,
        validation=parts.dataset.validation,
        optimizer=parts.optimizer,
        state=state,
        checkpoints=Checkpoints(folder.checkpoints_folder, recipe.checkpoint.keep),
        write_weights=partial(_write_weights, parts),
        world=world,
        callbacks=watchers.all,
        sample=parts.sampler,
        tasks=parts.tasks,
        allocator=parts.allocator,
        reference=parts.reference,
    )


def _write_weights(parts: Assembled, target: Path) -> None:
    """The policy as an ordinary folder; a critic goes to the part that a resume needs."""
    weights = parts.optimizer.weights()
    parts.policy.save(
        target, {name: value for name, value in weights.items() if not name.startswith(CRITIC)}, parts.tokenizer_files
    )
    if parts.critic is not None:
        parts.critic.save(target / "resume", weights)


def _precompute(recipe: Recipe, parts: Assembled, plan: Plan, world: World, watchers: Watchers) -> None:
    """Let the reference score all data before the first step, if the recipe asks for it."""
    reference, dataset = parts.reference, parts.dataset
    assert reference is not None
    if getattr(recipe.stage, "reference", "auto") != "precompute":
        return
    reference.column = precomputed(
        reference,
        dataset.store,
        [dataset.train, *([dataset.validation] if dataset.validation else [])],
        key=reference_key(recipe, parts.policy.dtype),
        micro_batch_tokens=plan.micro_batch_tokens,
        packing=plan.packing,
        world=world,
        progress=watchers.preparing,
    )
    if parts.objective.first_look is None:
        reference.forget()


def _check_extension(folder: RunFolder, recipe: Recipe, step: int, overrides: Sequence[str]) -> None:
    """Refuse to carry on a finished run where nothing would come of it.

    Raises:
        UserError: nothing was changed, or what ended the run early still holds.
    """
    if not overrides:
        raise _complete(folder, step)
    last = folder.checkpoint(step)
    if last.is_dir() and (reason := ended_early(recipe, TrainState.from_json(read_state(last)["train"]))):
        raise UserError(
            f"run `{folder.name}` ended early after step {step}: {reason}", hint="Change that too, or set it to null, to go on."
        )


def _complete(folder: RunFolder, step: int) -> UserError:
    return UserError(
        f"run `{folder.name}` is complete after {step} steps",
        hint=f"Extend it with `luthier resume {folder.reference} train.max_steps={step * 2}`.",
    )


def _record(writer: RunWriter, recipe: Recipe, parts: Assembled, job: Job, saved: Saved | None) -> None:
    """Write down what this attempt is about to do, and tell the watchers."""
    folder = writer.folder
    write_atomic(folder.recipe, dump_recipe(recipe))
    _write_plan(folder, parts, job, parts.dataset.report)
    write_json(folder.environment, environment())
    info = StartInfo(
        name=folder.name,
        folder=folder.path,
        total_steps=job.plan.total_steps,
        steps_per_epoch=job.plan.steps_per_epoch,
        first_step=job.state.step + 1,
        attempt=writer.attempt,
        recipe=json.loads(json.dumps(recipe.model_dump(mode="json"))),
    )
    for callback in job.callbacks:
        callback.on_start(info)


def _write_plan(folder: RunFolder, parts: Assembled, job: Job, report: DataReport) -> None:
    write_json(folder.plan, job.plan.to_json() | {"attention": parts.policy.attention, "data": report.as_dict()})


def _finish(job: Job, parts: Assembled, folder: RunFolder, outcome: str, watchers: Watchers, writer: RunWriter | None) -> None:
    """Put the final weights in place, and say how it went."""
    if writer is None:
        return
    if isinstance(parts.batches, StreamBatches):
        report = parts.batches.used(parts.dataset.report)
        _write_plan(folder, parts, job, report)
        for line in report.lines():
            watchers.note(line)
    if outcome == "done":
        publish_final(folder.checkpoint(job.state.step), folder.final)
    if job.executed.real:
        supervised = job.state.supervised_tokens / max(job.state.tokens, 1)
        line = verdict(job.policy, job.executed, supervised_share=supervised, packing=job.plan.packing, notes=list(parts.notes))
        watchers.note(line)
        writer.event("verdict", text=line)
    writer.status("done" if outcome == "done" else "stopped", step=job.state.step)
    watchers.ended(outcome)
