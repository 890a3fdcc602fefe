"""A recipe goes in, a run comes out: what is promised of the folder, the losses, the stops and the resumes."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import luthier
from luthier.engine.checkpoint import read
from luthier.engine.plan import batch_of
from luthier.errors import Stopped, UserError
from luthier.runs.records import Callback, StepRecord
from luthier.workshop import Run
from luthier.workshop.training import as_before
from tests.workspace import Workspace, weights_of

Train = Callable[..., Run]


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace.make(tmp_path)


def train(space: Workspace, *overrides: str, name: str | None = None, callbacks: tuple[Callback, ...] = ()) -> Run:
    return luthier.train(space.recipe, overrides=overrides, name=name, callbacks=callbacks, progress=False)


def step_losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics() if "loss" in record]


class Each(Callback):
    """Calls a function at every step."""

    def __init__(self, function: Callable[[StepRecord], None]) -> None:
        self.on_step = function  # type: ignore[method-assign,assignment]


def test_a_run_folder_holds_what_is_promised(space: Workspace) -> None:
    run = train(space, "data.validation=4", "evaluate.samples.prompts=[Count to 3.]", "report_to=[tensorboard]")
    for name in ("recipe.yaml", "status.json", "events.jsonl", "metrics.jsonl", "samples.jsonl", "plan.json", "environment.json"):
        assert (run.path / name).is_file(), name
    assert (run.path / "loss.png").stat().st_size > 1000
    assert any((run.path / "tensorboard").iterdir())
    assert (run.path / "log" / "rank-0.txt").read_text()
    assert run.status.state == "done"
    assert all(file.stat().st_mode & 0o777 == run.path.stat().st_mode & 0o666 for file in (run.path / "final").iterdir())
    steps = [record for record in run.metrics() if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert steps[0].keys() >= {"step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"}
    evaluations = [record for record in run.metrics() if "eval_loss" in record]
    assert evaluations[-1]["step"] == 8
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(math.exp(evaluations[-1]["eval_loss"]))
    assert [sample["step"] for sample in run.samples()] == [0, 4, 8]
    assert "verdict" in {event["kind"] for event in map(json.loads, (run.path / "events.jsonl").read_text().splitlines())}


def test_learning_lowers_the_loss_and_the_same_run_has_the_same_bits(space: Workspace) -> None:
    first, second = train(space), train(space, name="second")
    assert step_losses(first)[-1] < step_losses(first)[0] - 0.3
    assert step_losses(first) == step_losses(second)
    expected, found = weights_of(first.path / "final"), weights_of(second.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("change", ["data.packing=false", "train.micro_batch_tokens=600"])
def test_execution_changes_nothing_but_rounding(space: Workspace, change: str) -> None:
    reference = train(space, "method.dropout=0")
    other = train(space, "method.dropout=0", change, name="other")
    assert step_losses(other) == pytest.approx(step_losses(reference), rel=1e-5)


def test_per_device_batches_are_another_way_to_say_batch_size(space: Workspace) -> None:
    reference = train(space, "method.dropout=0")
    words = ("train.batch_size=null", "train.per_device_batch_size=2", "train.gradient_accumulation_steps=2")
    assert step_losses(train(space, "method.dropout=0", *words, name="other")) == pytest.approx(step_losses(reference), rel=1e-5)
    with pytest.raises(UserError, match="Leave one of the two out"):
        train(space, "train.per_device_batch_size=3", name="contradiction")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_half_precision_learns_and_resumes(space: Workspace, precision: str, method: str) -> None:
    overrides = (f"train.precision={precision}", f"method={method}")
    straight = train(space, *overrides)
    assert step_losses(straight)[-1] < step_losses(straight)[0] - 0.2

    def interrupt(step: StepRecord) -> None:
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(space, *overrides, name="broken", callbacks=(Each(interrupt),))
    resumed = luthier.resume("broken", progress=False)
    expected, found = weights_of(straight.path / "final"), weights_of(resumed.path / "final")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_signal_saves_and_says_how_to_go_on(space: Workspace) -> None:
    def interrupt(step: StepRecord) -> None:
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="luthier resume first"):
        train(space, callbacks=(Each(interrupt),))
    run = Run.find("first")
    assert run.status.state == "stopped"
    saved = max(run.folder.checkpoints())
    assert saved >= 4
    resumed = luthier.resume(run, progress=False)
    assert [record["step"] for record in resumed.metrics() if "loss" in record] == list(range(1, 11))


def test_a_finished_run_can_be_extended(space: Workspace) -> None:
    run = train(space)
    with pytest.raises(UserError, match="is complete after 10 steps"):
        luthier.resume("first", progress=False)
    assert Run.find("first").status.state == "done"
    longer = luthier.resume("first", overrides=["train.max_steps=14"], progress=False)
    assert [record["step"] for record in longer.metrics() if "loss" in record] == list(range(1, 15))
    assert (run.path / "final").is_dir()


def test_what_was_learnt_cannot_be_changed_by_a_resume(space: Workspace) -> None:
    train(space)
    for change in ("train.seed=1", "method.rank=2", "data.max_length=64", "train.learning_rate=1"):
        with pytest.raises(UserError, match="cannot change when a run is resumed"):
            luthier.resume("first", overrides=[change], progress=False)


def test_changed_data_uses_what_was_learnt_from(space: Workspace) -> None:
    straight = train(space)

    class Quit(Callback):
        def wants_stop(self) -> bool:
            return True

    with pytest.raises(Stopped):
        train(space, name="broken", callbacks=(Quit(),))
    rows = space.folder / "rows.json"
    rows.write_text(rows.read_text().replace("Count", "Please count"))
    resumed = luthier.resume("broken", progress=False)
    assert step_losses(resumed) == step_losses(straight)


def test_early_stopping_keeps_the_best_checkpoint(space: Workspace) -> None:
    run = train(
        space,
        "data.validation=4",
        "train.learning_rate=0.5",
        "train.epochs=20",
        "evaluate.every=2",
        "evaluate.patience=2",
        "checkpoint.keep=1",
    )
    evaluations = [record for record in run.metrics() if "eval_loss" in record]
    best = min(evaluations, key=lambda record: record["eval_loss"])["step"]
    assert len(evaluations) < 40
    assert best in run.folder.checkpoints()


def test_stop_at_loss(space: Workspace) -> None:
    run = train(space, "train.epochs=20", "train.stop_at_loss=7.9", "data.validation=4", "evaluate.every=1000")
    assert run.status.state == "done"
    assert [record["step"] for record in run.metrics() if "eval_loss" in record] == [len(step_losses(run))]
    assert 10 <= len(step_losses(run)) < 100


def test_bad_numbers_are_skipped_counted_and_named(space: Workspace) -> None:
    with pytest.raises(UserError, match=r"rows\.json:\d+") as caught:
        train(space, "train.learning_rate=1e30", "train.max_steps=40", "train.max_bad_steps=3", "train.warmup=0")
    assert "learning_rate" in str(caught.value)
    run = Run.find("first")
    assert run.status.state == "failed"
    assert sum(record["skipped"] for record in run.metrics() if "loss" in record) >= 2


def test_a_name_in_use_is_refused_with_the_choice(space: Workspace) -> None:
    train(space)
    with pytest.raises(UserError, match="--name"):
        train(space)


def test_continue_from_an_adapter(space: Workspace) -> None:
    first = train(space)
    second = train(space, f"model.adapter={first.path / 'final'}", name="second")
    assert step_losses(second)[0] < step_losses(first)[0] - 0.3


@pytest.mark.parametrize(
    "method", ["full", "{type: freeze, layers: 1}", "{type: lora, dora: true}", "{type: lora, modules_to_save: [lm_head]}"]
)
def test_every_method_learns_and_can_be_talked_to(space: Workspace, method: str) -> None:
    run = train(space, f"method={method}", "train.learning_rate=5e-3")
    assert step_losses(run)[-1] < step_losses(run)[0]
    tuned, base = luthier.load(run), luthier.load(run, base=True)
    assert tuned.answers(["Count to 3."], max_new_tokens=8)
    ids = torch.tensor([tuned.prompt("Count to 3.")])
    assert not torch.allclose(tuned.model(ids).logits, base.model(ids).logits)


def test_pretraining_on_text(space: Workspace) -> None:
    (space.folder / "book.txt").write_text("\n\n".join(f"This is paragraph number {n}. " * 30 for n in range(12)))
    run = train(
        space,
        "stage=pt",
        "data.train=[book.txt]",
        "train.batch_size=null",
        "train.batch_tokens=512",
        "train.epochs=4",
        "method=full",
    )
    assert step_losses(run)[-1] < step_losses(run)[0] - 0.5
    assert luthier.load(run).chat("This is", max_new_tokens=4) is not None


def test_two_ranks_are_one(space: Workspace) -> None:
    one = train(space, "method.dropout=0")
    done = space.luthier(
        "train", "recipe.yaml", "method.dropout=0", "--name", "two", "--nproc", "2", LUTHIER_CACHE=os.environ["LUTHIER_CACHE"]
    )
    assert done.returncode == 0, done.stderr
    two = Run.find("two")
    assert step_losses(two) == pytest.approx(step_losses(one), rel=1e-5)
    for name, tensor in weights_of(one.path / "final").items():
        torch.testing.assert_close(weights_of(two.path / "final")[name], tensor, rtol=1e-3, atol=1e-5)


def test_killed_between_the_last_checkpoint_and_the_end_a_run_is_finished_by_resume(space: Workspace) -> None:
    straight = train(space)
    (straight.path / "final" / "adapter_model.safetensors").unlink()
    status = json.loads(straight.folder.status.read_text())
    straight.folder.status.write_text(json.dumps({**status, "state": "running"}))
    resumed = luthier.resume("first", progress=False)
    assert resumed.status.state == "done"
    assert weights_of(resumed.path / "final")
    assert len(step_losses(resumed)) == 10


def test_a_stop_at_the_last_step_is_the_end(space: Workspace) -> None:
    class QuitAtTheEnd(Callback):
        last = 0

        def on_step(self, step: StepRecord) -> None:
            self.last = step.step

        def wants_stop(self) -> bool:
            return self.last >= 9

    assert train(space, callbacks=(QuitAtTheEnd(),)).status.state == "done"


def test_reported_times_add_up(space: Workspace) -> None:
    began = time.perf_counter()
    run = train(space, "train.epochs=6")
    took = time.perf_counter() - began
    steps = [record for record in run.metrics() if "loss" in record]
    assert sum(record["seconds"] for record in steps) < took
    assert all(record["tokens_per_second"] == pytest.approx(record["tokens"] / record["seconds"], rel=0.01) for record in steps)


def test_a_run_that_is_going_on_is_not_resumed_twice(space: Workspace) -> None:
    refused: list[str] = []

    def resume_too(step: StepRecord) -> None:
        if step.step == 3:
            with pytest.raises(UserError, match="already running") as caught:
                luthier.resume("first", progress=False)
            refused.append(str(caught.value))

    run = train(space, callbacks=(Each(resume_too),))
    assert len(refused) == 1
    assert run.status.state == "done"


def test_a_missing_tracker_is_told_before_a_folder_is_made(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.runs.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="is not installed"):
        train(space, "report_to=[wandb]")
    assert not space.run().exists()


def test_an_early_stopped_run_killed_before_its_end_takes_no_further_step(space: Workspace) -> None:
    run = train(space, "train.epochs=20", "train.stop_at_loss=7.9")
    before, weights = run.status.step, weights_of(run.path / "final")
    status = json.loads(run.folder.status.read_text())
    run.folder.status.write_text(json.dumps({**status, "state": "running"}))
    resumed = luthier.resume("first", progress=False)
    assert resumed.status.step == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(resumed.path / "final").items())


def test_a_resume_on_more_ranks_keeps_the_examples_of_a_step(space: Workspace) -> None:
    run = train(
        space,
        "train.batch_size=null",
        "train.per_device_batch_size=2",
        "train.gradient_accumulation_steps=2",
        "train.max_steps=1",
    )
    pinned = as_before(run.recipe, read(run.folder.checkpoint(1)))
    assert batch_of(run.recipe.train, "sft", 128, ranks=2) == (8, None)
    assert batch_of(pinned.train, "sft", 128, ranks=2) == (4, None)
    assert pinned.train.precision == "fp32"


def test_how_to_go_on_names_a_run_that_can_be_found(space: Workspace) -> None:
    class Quit(Callback):
        def wants_stop(self) -> bool:
            return True

    with pytest.raises(Stopped, match=r"luthier resume elsewhere/first"):
        train(space, "output=elsewhere", callbacks=(Quit(),))
    assert luthier.resume("elsewhere/first", progress=False).status.state == "done"


def test_an_early_stopped_run_says_why_it_ended_and_is_not_extended_in_vain(space: Workspace) -> None:
    run = train(space, "train.epochs=20", "train.stop_at_loss=7.9")
    assert "train.stop_at_loss" in (run.path / "log" / "rank-0.txt").read_text()
    with pytest.raises(UserError, match=r"ended early after step \d+.*train\.stop_at_loss"):
        luthier.resume(run, overrides=["train.max_steps=200"], progress=False)
    further = run.status.step + 2
    longer = luthier.resume(run, overrides=["train.stop_at_loss=null", f"train.max_steps={further}"], progress=False)
    assert longer.status.step == further


def test_memory_that_does_not_suffice_is_one_line(space: Workspace) -> None:
    def exhaust(step: StepRecord) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(UserError, match="activation_checkpointing=full"):
        train(space, callbacks=(Each(exhaust),))


def test_a_template_that_was_chosen_for_the_user_is_said(space: Workspace) -> None:
    (space.folder / "model" / "chat_template.jinja").unlink()
    notes: list[str] = []

    class Listen(Callback):
        def on_note(self, text: str, shown: object = None) -> None:
            notes.append(text)

    train(space, callbacks=(Listen(),))
    assert any("no chat template" in note for note in notes), notes
