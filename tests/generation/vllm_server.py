"""A small model behind the parts of vLLM's HTTP interface that Luthier uses, answering as vLLM documents them.

Fields and their meaning are those of vLLM's `CompletionRequest` and `CompletionResponse`, of its model cards, and of its page on LoRA
adapters: `n` answers with an index each, `token_ids` with the stop token and `text` without, `finish_reason` stop or length, refusals as
`{"error": {"message": …}}` with status 400 or 404, adapters acknowledged in a sentence. Fields that are not known there are refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from luthier.generation.bulk import write_answers
from luthier.generation.sampling import Decoding
from luthier.generation.text import Decodes

KNOWN = {
    "model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "logprobs", "return_token_ids",
}  # fmt: skip
BASE = "served/base"
LENGTH = 128
Spoil = Callable[[dict[str, Any]], None]


class Engine:
    """What the server serves, and what it was asked.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        spoil: changes each choice before it is sent.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Decodes, spoil: Spoil | None = None) -> None:
        self.model, self.tokenizer, self.spoil = model, tokenizer, spoil
        self.adapters: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[int] = []  # statuses of the next replies
        self.lock = threading.Lock()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and what is said."""
        self.asked.append((path, body))
        if self.failures:
            return self.failures.pop(0), {"error": {"message": "the engine is busy"}}
        if path == "/v1/models":
            served = {"id": BASE, "object": "model", "root": BASE, "parent": None, "max_model_len": LENGTH}
            loaded = [{"id": name, "object": "model", "root": root, "parent": BASE} for name, root in self.adapters.items()]
            return 200, {"object": "list", "data": [served, *loaded]}
        return {
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/v1/completions": self._complete,
        }.get(path, lambda _: (404, {"detail": "Not Found"}))(body)

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, folder = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (Path(folder) / "adapter_config.json").exists():
            return 404, _error(f"Loading lora {name} failed: No adapter found for {folder}")
        self.adapters[name] = folder
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, _error(f"The lora adapter '{body['lora_name']}' cannot be found.")
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if unknown := body.keys() - KNOWN:
            return 400, _error(f"Extra inputs are not permitted: {unknown}")
        if body["model"] not in (BASE, *self.adapters):
            return 404, _error(f"The model `{body['model']}` does not exist.")
        prompt = body["prompt"]
        if len(prompt) + body["max_tokens"] > LENGTH:
            return 400, _error(f"This model's maximum context length is {LENGTH} tokens.")
        settings = Decoding(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=max(body["top_k"], 0),
            seed=body["seed"],
            stop_ids=frozenset(body["stop_token_ids"]),
            stop_strings=tuple(body["stop"]),
        )
        with self.lock:
            written = self._written(body["model"], prompt, settings, body["n"])
        choices = [self._choice(place, prompt, said, settings) for place, said in enumerate(written)]
        for choice in choices if self.spoil else ():
            assert self.spoil is not None
            self.spoil(choice)
        return 200, {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices[::-1], "usage": {}}

    def _written(self, name: str, prompt: list[int], settings: Decoding, answers: int) -> list[Any]:
        if name == BASE:
            return write_answers(self.model, self.tokenizer, [prompt], settings, answers=answers)
        adapted = PeftModel.from_pretrained(self.model, self.adapters[name])
        try:
            return write_answers(adapted.base_model.model, self.tokenizer, [prompt], settings, answers=answers)
        finally:
            self.model = adapted.unload()

    def _choice(self, place: int, prompt: list[int], said: Any, settings: Decoding) -> dict[str, Any]:
        tokens = said.tokens.tolist()
        at_token = tokens[-1] in settings.stop_ids
        return {
            "index": place,
            "text": said.text,
            "logprobs": {"token_logprobs": said.logprobs.tolist(), "tokens": [str(token) for token in tokens]},
            "finish_reason": "stop" if said.finished else "length",
            "stop_reason": tokens[-1] if at_token else None,
            "token_ids": tokens,
            "prompt_token_ids": prompt,
        }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address of a server of this engine, as long as it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            status, said = engine.reply(self.path, body)
            reply = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
