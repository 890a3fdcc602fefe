"""Names become folders; each failure of a hub is one line that says what to do. No network: the libraries are stood in for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from luthier.errors import UserError
from luthier.models import hub


def failing(error: Exception) -> Callable[..., str]:
    def snapshot_download(*_args: Any, **_kwargs: Any) -> str:
        raise error

    return snapshot_download


ANSWER: Any = SimpleNamespace(headers={}, request=None)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert hub.fetch(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere", ""])
def test_what_is_no_folder_and_no_hub_id_is_said(path: str) -> None:
    with pytest.raises(UserError, match=r"no such folder.*hub id such as"):
        hub.fetch(path)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (file := tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="a model is a folder"):
        hub.fetch(str(file))


def test_hugging_face_is_asked_for_safe_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.fetch("owner/model", revision="main") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/model", "main")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not {"*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])
    assert {"*.py", "*.bin"} <= set(asked["ignore_patterns"])


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize("safe", [False, True])
def test_pickles_are_fetched_of_what_is_old_and_has_nothing_else(
    file: str, safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    (tmp_path / file).write_text('{"model_type": "chatglm"}')
    if safe:
        (tmp_path / "model.safetensors").touch()

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.find("owner/model") == tmp_path
    assert len(asked) == (1 if safe else 2)
    assert ("pytorch_model*.bin" in asked[-1]["allow_patterns"]) is not safe
    assert "*.py" in asked[-1]["ignore_patterns"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("gated", response=ANSWER), "this model is gated. Ask for access at .*owner/model.*HF_TOKEN"),
        (errors.RepositoryNotFoundError("404", response=ANSWER), "no such model on Hugging Face.*HF_TOKEN"),
        (errors.RevisionNotFoundError("404", response=ANSWER), "no revision `v9`"),
        (errors.LocalEntryNotFoundError("offline"), "HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (errors.HfHubHTTPError("500 Server Error\nlong", response=ANSWER), "the download failed .500 Server Error"),
        (ConnectionError("broken pipe"), "goes on from here"),
        (RuntimeError("the client's own"), "goes on from here"),
    ],
)
def test_failures_of_hugging_face_are_one_line(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(UserError, match=message) as caught:
        hub.fetch("owner/model", revision="v9")
    assert "\n" not in str(caught.value)


def test_offline_mode_is_honoured_by_the_library_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub.fetch("owner/model-that-is-not-cached")


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A stand-in for the ModelScope library: `downloads` and `tokens` record what was asked of it."""
    record = SimpleNamespace(downloads=[], tokens=[], folder=tmp_path, error=None)

    class HubApi:
        def login(self, token: str) -> None:
            record.tokens.append(token)
            if token == "wrong":
                raise ValueError("bad token")

    def snapshot_download(name: str, **options: Any) -> str:
        record.downloads.append((name, options["revision"]))
        if record.error:
            raise record.error
        return str(record.folder)

    library, package, api = ModuleType("modelscope"), ModuleType("modelscope.hub"), ModuleType("modelscope.hub.api")
    library.snapshot_download, api.HubApi = snapshot_download, HubApi  # type: ignore[attr-defined]
    library.hub, package.api = package, api  # type: ignore[attr-defined]
    for module in (library, package, api):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return record


def test_modelscope_by_recipe_and_by_environment(modelscope: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.fetch("owner/model", hub="modelscope") == modelscope.folder
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    hub.fetch("owner/other", revision="v2")
    assert modelscope.downloads == [("owner/model", None), ("owner/other", "v2")]
    assert modelscope.tokens == ["secret"]


def test_the_recipe_s_hub_beats_the_environment(modelscope: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: str(modelscope.folder))
    hub.fetch("owner/model", hub="huggingface")
    assert not modelscope.downloads


def test_failures_of_modelscope_are_one_line(modelscope: SimpleNamespace) -> None:
    modelscope.error = RuntimeError("404\nmany lines")
    with pytest.raises(UserError, match="MODELSCOPE_API_TOKEN") as caught:
        hub.fetch("owner/model", hub="modelscope")
    assert "\n" not in str(caught.value)


def test_without_its_library_modelscope_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"luthier\[modelscope\]"):
        hub.fetch("owner/model", hub="modelscope")


def test_login_stores_the_token_as_the_hub_s_library_does(modelscope: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "login", lambda **options: stored.update(options))
    assert hub.login("hf_secret") == "Hugging Face"
    assert stored["token"] == "hf_secret"
    assert hub.login("ms_secret", "modelscope") == "ModelScope"
    assert modelscope.tokens == ["ms_secret"]


def test_a_refused_token_is_one_line(modelscope: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "login", failing(ValueError("Invalid token passed!")))
    with pytest.raises(UserError, match="Hugging Face refused the token"):
        hub.login("wrong")
    with pytest.raises(UserError, match="ModelScope refused the token"):
        hub.login("wrong", "modelscope")
