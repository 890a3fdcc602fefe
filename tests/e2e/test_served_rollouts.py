"""Rollouts that a vLLM server writes: it follows the policy's adapter, and what it says of tokens is what the trainer says.

The server is a small one that answers as vLLM documents it (`tests/generation/vllm_server.py`), with the same base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import UserError
from luthier.generation import served
from luthier.models.loading import load_model
from luthier.recipe.schema import Model
from tests.e2e.interrupted import steps
from tests.e2e.test_reinforcement import space_of
from tests.generation.vllm_server import Engine, serving
from tests.workspace import TINY, small_model

STAGES: dict[str, dict[str, Any]] = {
    "grpo": {"type": "grpo", "beta": 0.05, "kl_in": "reward", "kl_estimator": "k1"},
    "ppo": {"type": "ppo", "passes": 2, "answers": 2},
    "online_dpo": {"type": "online_dpo"},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(served, "FIRST_WAIT", 0.01)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    import torch

    folder = small_model(tmp_path / "served")
    model = load_model(Model(path=str(folder)), dtype=torch.float32, device=torch.device("cpu"))
    return Engine(model, load_tokenizer(TINY))


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.mark.parametrize("name", ["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ppo", "online_dpo"))])
def test_the_server_follows_the_policy(tmp_path: Path, engine: Engine, url: str, name: str) -> None:
    (tmp_path / "adapters").mkdir()
    writer = {"type": "vllm", "url": f"{url}/v1", "folder": "adapters"}
    space = space_of(tmp_path, STAGES[name] | {"writer": writer}, train={"max_steps": 3}, data={"validation": 2})
    run = luthier.train(space.recipe, progress=False)
    records = steps(run)
    assert len(records) == 3
    assert all(record["sampler_gap"] < 1e-4 for record in records)  # with a stale adapter it is a thousand times that
    assert all(record["grad_norm"] > 0 for record in records)
    if name != "online_dpo":
        assert all(record["mismatch"] == pytest.approx(1, abs=1e-3) for record in records)
    names = [body["lora_name"] for path, body in engine.asked if path == "/v1/load_lora_adapter"]
    assert len(set(names)) == len(names) > 2
    assert list(engine.adapters) == names[-1:]  # the others were forgotten
    assert {body["model"] for path, body in engine.asked if path == "/v1/completions"} == set(names)


def test_a_server_that_does_not_follow_is_seen(tmp_path: Path, engine: Engine, url: str) -> None:
    space = space_of(tmp_path, STAGES["grpo"] | {"writer": {"type": "vllm", "url": url}}, train={"max_steps": 3})
    engine._written = lambda name, *rest: Engine._written(engine, "served/base", *rest)  # type: ignore[method-assign]
    gaps = [record["sampler_gap"] for record in steps(luthier.train(space.recipe, progress=False))]
    assert gaps[0] < 1e-4  # the adapter begins at the base
    assert gaps[-1] > 1e-2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.writer.url=http://127.0.0.1:9"], "does not answer"),
        (["stage.writer.url=localhost:8000"], "http://"),
        (["method.type=full"], "LoRA adapter"),
        (["method.dora=true"], "LoRA adapter"),
        (["stage.writer.folder=nowhere"], "nowhere"),
        (["stage.writer.token_env=NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, url: str, overrides: list[str], message: str) -> None:
    method = {"type": "full"} if overrides == ["method.type=full"] else {"type": "lora", "rank": 4}
    space = space_of(tmp_path, STAGES["grpo"] | {"writer": {"type": "vllm", "url": url}}, method=method)
    with pytest.raises(UserError, match=message):
        luthier.train(space.recipe, overrides=overrides, progress=False)


def test_an_adapter_that_the_server_refuses(tmp_path: Path, engine: Engine, url: str) -> None:
    space = space_of(tmp_path, STAGES["grpo"] | {"writer": {"type": "vllm", "url": url}})
    engine._load = lambda _: (404, {"detail": "Not Found"})  # type: ignore[method-assign]
    with pytest.raises(UserError, match="says 404") as refused:
        luthier.train(space.recipe, progress=False)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in str(refused.value.hint)
