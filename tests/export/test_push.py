"""Cards and hubs: what is told, what is sent, and that the hub is asked afterwards. The hub is a server of this test."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest

from luthier import UserError
from luthier.export.card import write_card
from luthier.export.push import push
from tests.chat_folders import adapter_folder, model_folder
from tests.export.test_merge import run_folder

RECIPE = """model: {base}
data: {{train: [{{name: tiny_stories, max_examples: 100}}, /home/somebody/secret/mine.jsonl], template: qwen}}
method: {{type: lora, rank: 4}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = model_folder("qwen3", tmp_path / "base", template=None)
    folder = run_folder(tmp_path / "runs" / "first", RECIPE.format(base=base))
    adapter_folder("qwen3", folder / "final", base)
    metrics = [{"seq": n, "attempt": 1, "step": n, "loss": 3.0 / n, "tokens": 100} for n in range(1, 9)]
    metrics += [{"seq": 9, "attempt": 1, "step": 8, "eval_loss": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
    (folder / "events.jsonl").write_text('{"seq": 0, "attempt": 1, "kind": "start", "first_step": 1}\n')
    found = {"luthier": "1", "python": "3.11", "processor": "a CPU", "gpus": [], "packages": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps(found))
    return folder


def test_the_card_says_what_is_known_and_no_more(run: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"tasks": {"gsm8k": {"exact": 0.25, "n": 200}}, "note": "text"}')
    text = write_card("first", tmp_path / "card", licence="apache-2.0", evaluation=tmp_path / "results.json").read_text()
    assert "license: apache-2.0" in text
    assert "library_name: peft" in text
    assert "| tiny_stories | the first 100 examples | 1 | cdla-sharing-1.0 |" in text
    assert "| mine.jsonl | all examples | 1 | unknown |" in text
    assert "roneneldan/TinyStories" in text
    assert "| validation loss, last | 0.5000 |" in text
    assert "| tokens | 800 |" in text
    assert "| tasks gsm8k exact | 0.25 |" in text
    assert "rank: 4" in text
    assert "| torch | 2.13.0 |" in text
    assert "/home" not in text
    assert str(tmp_path) not in text
    assert (tmp_path / "card" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_lists_what_would_be_sent(run: Path, tmp_path: Path) -> None:
    sent = push("first", "me/first", dry_run=True)
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "loss.png"} <= set(sent.files)
    assert sent.url == ""
    merged = push("first", "me/first", merged=True, dry_run=True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.png"} <= set(merged.files)
    assert "adapter_config.json" not in merged.files
    (tmp_path / "exported").mkdir()
    for name in ("model.gguf", "Modelfile", "manifest.json"):
        (tmp_path / "exported" / name).write_text("content")
    assert push(tmp_path / "exported", "me/first", dry_run=True).files == {"Modelfile": 7, "model.gguf": 7}
    with pytest.raises(UserError, match="no name on a hub"):
        push("first", "first", dry_run=True)


class Hub(BaseHTTPRequestHandler):
    """As much of Hugging Face's hub as an upload needs."""

    files: dict[str, int]
    requests: list[str]
    forgets = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = b""
            while size := int(self.rfile.readline(), 16):
                parts += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return parts
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        sent = self.body()
        self.requests.append(self.path)
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"http://{self.headers['Host']}/me/first"})
        elif "/preupload/" in self.path:
            named = json.loads(sent)["files"]
            self.answer({"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in named]})
        elif "/commit/" in self.path:
            for line in sent.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file" and not self.forgets:
                    self.files[entry["value"]["path"]] = len(base64.b64decode(entry["value"]["content"]))
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/first/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "hookOutput": "",
                }
            )
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in self.files.items()])
        else:
            self.answer({"id": "me/first", "sha": "1" * 40, "siblings": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    own: type[Hub] = type("Own", (Hub,), {"files": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    whole = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: whole(endpoint=address, token="hf_test"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield own
    server.shutdown()


def test_an_adapter_is_sent_with_its_card(run: Path, hub: type[Hub]) -> None:
    sent = push("first", "me/first")
    assert hub.files == sent.files
    assert sent.url.endswith("/me/first")
    assert any(path.endswith("/repos/create") for path in hub.requests)


def test_a_hub_that_lost_a_file_is_noticed(run: Path, hub: type[Hub]) -> None:
    hub.forgets = True
    with pytest.raises(UserError, match="the hub holds another"):
        push("first", "me/first")


def test_a_hub_that_cannot_be_reached_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: whole(endpoint="http://127.0.0.1:9", token="hf_test"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="Hugging Face did not take it"):
        push("first", "me/first")


def test_modelscope_is_asked_by_its_own_library(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    calls: list[tuple[str, dict[str, Any]]] = []
    held: list[dict[str, Any]] = []

    class Api:
        def create_repo(self, repo: str, **options: Any) -> None:
            calls.append((repo, options))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            held.extend({"Path": file.name, "Size": file.stat().st_size} for file in Path(folder_path).iterdir())

        def get_model_files(self, repo: str) -> list[dict[str, Any]]:
            return held

    api = types.SimpleNamespace(HubApi=Api)
    library = types.SimpleNamespace(hub=types.SimpleNamespace(api=api))
    monkeypatch.setattr("luthier.export.push.modelscope", lambda: library)
    sent = push("first", "me/first", hub="modelscope", private=False)
    assert sent.url == "https://modelscope.cn/models/me/first"
    assert calls == [("me/first", {"visibility": "public", "exist_ok": True})]
