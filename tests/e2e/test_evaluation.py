"""Tasks while a run is trained: their values in its records, the best checkpoint by them, the same after a resume; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import luthier
from luthier.errors import Stopped, UserError
from luthier.runs.records import Callback
from tests.workspace import Workspace, weights_of


class Quit(Callback):
    """Stops a run after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.now = step, 0

    def on_step(self, step):
        self.now = step.step

    def wants_stop(self) -> bool:
        return self.now >= self.step


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Count to three, and then to four.\nThe fox sleeps in the wood.\n", "utf-8")
    (tmp_path / "held.jsonl").write_text(
        "".join(json.dumps({"instruction": f"Count to {n}.", "output": "1, 2"}) + "\n" for n in (2, 3)), "utf-8"
    )
    tasks = ["perplexity:text.txt", {"type": "generate", "path": "held.jsonl", "metrics": ["f1"], "max_new_tokens": 4}]
    evaluate = {"every": 2, "tasks": tasks, "metric": "perplexity/perplexity"}
    return Workspace.make(tmp_path, evaluate=evaluate, train={"max_steps": 8, "learning_rate": 0.02})


def measured(run):
    return [record for record in run.metrics() if "eval_perplexity/perplexity" in record]


def test_the_best_checkpoint_is_that_of_the_task_and_resume_is_bitwise(space: Workspace) -> None:
    whole = luthier.train(space.recipe, name="whole", overrides=["checkpoint.keep=1"], progress=False)
    found = measured(whole)
    assert [record["step"] for record in found] == [2, 4, 6, 8]
    assert all(0 <= record["eval_generate/f1"] <= 1 for record in found)
    best = min(found, key=lambda record: record["eval_perplexity/perplexity"])
    assert best["step"] in whole.folder.checkpoints()
    assert [record["step"] for record in found if record["best"]][-1] == best["step"]
    assert whole.status.fields["best_value"] == best["eval_perplexity/perplexity"]
    with pytest.raises(Stopped):
        luthier.train(space.recipe, name="cut", overrides=["checkpoint.keep=1"], callbacks=[Quit(3)], progress=False)
    resumed = luthier.resume("cut", progress=False)
    values = [{k: v for k, v in record.items() if k.startswith("eval_")} for record in found]
    assert [{k: v for k, v in record.items() if k.startswith("eval_")} for record in measured(resumed)] == values
    bare = luthier.train(space.recipe, name="bare", overrides=["evaluate=null"], progress=False)  # looking changes nothing
    for other in (resumed, bare):
        mine, theirs = weights_of(whole.path / "final"), weights_of(other.path / "final")
        assert mine.keys() == theirs.keys()
        assert all(mine[name].equal(theirs[name]) for name in mine)


def test_patience_follows_the_task(space: Workspace) -> None:
    overrides = ["train.max_steps=40", "train.learning_rate=1.0", "evaluate.patience=1", "evaluate.metric=generate/f1"]
    run = luthier.train(space.recipe, overrides=overrides, progress=False)
    assert run.status.fields["step"] < 40
    assert "no better `generate/f1` since step" in (run.path / "events.jsonl").read_text("utf-8")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluate.metric=mmlu/accuracy"], "names the task `mmlu`"),
        (["evaluate.metric=loss"], "has to name a measure"),
        (["evaluate.metric=perplexity/perplexty"], r"does not measure `perplexty`. Did you mean `perplexity`"),
        (["evaluate.tasks=[judge:x]", "evaluate.metric=judge/win_rate"], "judge"),
        (["stage=rm"], "evaluate.tasks"),
    ],
)
def test_mistakes(space: Workspace, overrides, said) -> None:
    with pytest.raises(UserError, match=said):
        luthier.train(space.recipe, overrides=overrides, progress=False)


def test_the_command_compares_a_run_with_its_base(space: Workspace) -> None:
    luthier.train(space.recipe, overrides=["evaluate=null"], progress=False)
    said = space.luthier("evaluate", "first", "--tasks", "perplexity:text.txt", "--checkpoint", "6", "--json")
    assert said.returncode == 0, said.stderr
    (task,) = json.loads(said.stdout)["tasks"]
    first = task["measures"][0]
    assert first["tuned"]["value"] != first["base"]["value"]
    assert first["difference"]["value"] == pytest.approx(first["tuned"]["value"] - first["base"]["value"])
    assert "2 of 2" in said.stderr
    (folder,) = (space.run() / "evaluations").iterdir()
    assert {file.name for file in folder.iterdir()} == {"evaluation.json", "report.html", "items"}
    nothing = space.luthier("evaluate", "first")
    assert nothing.returncode == 2
    assert "there is no task" in nothing.stderr
