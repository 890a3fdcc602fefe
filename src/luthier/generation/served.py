"""Answers that a vLLM server writes, for rollouts: whole, with the ids of their tokens and what the server said of each.

Only what vLLM documents is used, over HTTP, so vLLM need not be installed where training runs:

    GET  /v1/models                  what is served, and `max_model_len`
    POST /v1/load_lora_adapter       {"lora_name": …, "lora_path": …}; the server needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
    POST /v1/unload_lora_adapter     {"lora_name": …}
    POST /v1/completions             prompt: ids; `return_token_ids` gives ids back, `logprobs` what they cost

No text is tokenised on the way: ids go in and ids come out (`return_token_ids`, vLLM 0.10.2 and later). An answer ends where one of the
training model would: the server's own end-of-text token is ignored in favour of the settings' stop tokens, and what its
`generation_config.json` would change is said anew with every request. What comes back is checked, because an answer to another prompt or
from another vocabulary would be learnt without a word: prompt ids, number of answers and tokens, ids, and why each ended.

`logprobs` are of the model's own distribution unless the server was started with `--logprobs-mode processed_logprobs`, which counts the
temperature and whatever was cut off. At temperature 1 with nothing cut off both are the same.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.generation.bulk import Written, limits_of
from luthier.generation.sampling import Decoding
from luthier.generation.text import Decodes, TextStream

PLACE = "stage.writer.url"
RETRIES, FIRST_WAIT = 4, 0.5
"""How often a request is tried again that got no answer, or status 429 or 5xx; each wait is twice as long as the one before."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None."""


class VLLMServer:
    """A vLLM server that serves the base of the model in training.

    Args:
        url: its address, without `/v1`.
        token: sent as bearer token.
        requests: prompts sent at the same time.
        timeout: seconds for one prompt.
        vocabulary: how many tokens the model in training has embeddings for, or None.

    Attributes:
        base: name of what it serves without an adapter.
        context: tokens of prompt and answer together that it can take, or None.

    Raises:
        UserError: it does not answer, or not as vLLM does.
    """

    def __init__(
        self, url: str, *, token: str = "", requests: int = 64, timeout: float = 600, vocabulary: int | None = None
    ) -> None:
        self.url, self.requests, self.timeout, self.vocabulary = url, requests, timeout, vocabulary
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        self.base, self.context = self._served()

    def load(self, name: str, folder: Path) -> None:
        """Have the server read the LoRA adapter in `folder`, under a name.

        Raises:
            UserError: it does not want to, or cannot see the folder.
        """
        self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> None:
        """Have it forget an adapter.

        Raises:
            UserError: it does not want to.
        """
        self._ask("/v1/unload_lora_adapter", {"lora_name": name})

    def write(
        self,
        name: str,
        tokenizer: Decodes,
        prompts: Sequence[Sequence[int]],
        settings: Decoding,
        *,
        answers: int = 1,
        first: int = 0,
    ) -> list[Written]:
        """`answers` answers to each of `prompts`, as `bulk.write_answers` gives them.

        Args:
            name: of an adapter that was loaded, or `base`.
            tokenizer: decodes token ids.
            prompts: token ids, at least one each.
            settings: how to answer.
            answers: to each prompt.
            first: index of the first answer; with the seed it is the server's seed, which is not the randomness of `bulk`.

        Raises:
            UserError: a prompt is empty or fills the context, the server does not answer, or what it gives is not what was asked for.
        """
        if not prompts:
            return []
        limits = limits_of(prompts, settings, self.context).tolist()
        chance = [(settings.seed * 1_000_003 + first + place * answers) % 2**62 for place in range(len(prompts))]

        def one(place: int) -> list[Written]:
            asked = _request(name, prompts[place], settings, answers, limits[place], chance[place])
            return self._read(self._ask("/v1/completions", asked), prompts[place], settings, answers, tokenizer)

        with ThreadPoolExecutor(self.requests, "vllm") as pool:
            return [said for some in pool.map(one, range(len(prompts))) for said in some]

    def _served(self) -> tuple[str, int | None]:
        """Name and context of the model that is no adapter."""
        listed = self._ask("/v1/models", None)
        cards = listed.get("data") if isinstance(listed, dict) else None
        found = [card for card in cards if isinstance(card, dict) and not card.get("parent")] if isinstance(cards, list) else []
        if not found or not isinstance(found[0].get("id"), str):
            raise self._strange("has no list of models at `/v1/models`")
        length = found[0].get("max_model_len")
        return found[0]["id"], length if isinstance(length, int) else None

    def _read(self, reply: Any, prompt: Sequence[int], settings: Decoding, answers: int, tokenizer: Decodes) -> list[Written]:
        """The answers in a reply to one prompt, in their order."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or sorted(_index(choice) for choice in choices) != list(range(answers)):
            raise self._strange(f"should have given {answers} answers to a prompt, and gave something else")
        return [self._answer(choice, prompt, settings, tokenizer) for choice in sorted(choices, key=_index)]

    def _answer(self, choice: dict[str, Any], prompt: Sequence[int], settings: Decoding, tokenizer: Decodes) -> Written:
        tokens, said = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not tokens or choice.get("prompt_token_ids") is None:
            raise self._strange("gives no token ids back", hint="Luthier needs vLLM 0.10.2 or later (`return_token_ids`).")
        if choice["prompt_token_ids"] != list(prompt):
            raise self._strange("has answered another prompt: its ids are not those that were sent")
        if said is None or len(said) != len(tokens) or not all(isinstance(value, int | float) for value in said):
            raise self._strange("does not say how probable each token was", hint="It has to allow `logprobs`.")
        if min(tokens) < 0 or (self.vocabulary is not None and max(tokens) >= self.vocabulary):
            raise self._strange(
                f"gives token {max(tokens)}, and the model in training knows {self.vocabulary}",
                hint="Serve the model that is trained.",
            )
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise self._strange(f"has ended an answer for another reason than its end or its length: `{reason}`")
        text, finished = _text(tokens, settings, tokenizer)
        if settings.stop_ids.intersection(tokens[:-1]) or (reason == "stop" and not finished):
            raise self._strange(
                "ends answers elsewhere than at the tokens that it was told of",
                hint="Serve the model that is trained, with its tokenizer.",
            )
        return Written(np.array(tokens, np.int32), np.array(said, np.float32), text, finished)

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        """What the server says, read as JSON where it is JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, self._headers)
        wait, why = FIRST_WAIT, ""
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return _parsed(response.read())
            except urllib.error.HTTPError as error:
                why = f"says {error.code} to `{path}`: {_message(error)}"
                if error.code != 429 and error.code < 500:
                    raise self._strange(why, hint=_HINTS.get(path, "Look at what the server logs.")) from error
            except (OSError, http.client.HTTPException) as error:
                why = f"does not answer: {getattr(error, 'reason', None) or error or type(error).__name__}"
        raise self._strange(why, hint=f"Start it with {START}; a run that stopped goes on with `luthier resume`.")

    def _strange(self, what: str, hint: str = "") -> UserError:
        return UserError(f"the vLLM server {what}", where=PLACE, hint=hint or None)


START = "`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK`"
_HINTS = {
    "/v1/load_lora_adapter": f"Start it with {START}, where it sees `stage.writer.folder` under the same path.",
    "/v1/unload_lora_adapter": f"Start it with {START}.",
    "/v1/models": "`url` is the address of `vllm serve`, without a path.",
}


def _request(name: str, prompt: Sequence[int], settings: Decoding, answers: int, limit: int, seed: int) -> dict[str, Any]:
    """One request; every setting is named, because the server has defaults of its own for what is not."""
    return {
        "model": name,
        "prompt": [int(token) for token in prompt],
        "n": answers,
        "max_tokens": int(limit),
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,
        "min_p": settings.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop": list(settings.stop_strings),
        "stop_token_ids": sorted(settings.stop_ids),
        "ignore_eos": True,
        "logprobs": 1,
        "return_token_ids": True,
    }


def _text(tokens: Sequence[int], settings: Decoding, tokenizer: Decodes) -> tuple[str, bool]:
    """The text of an answer, as training reads it, and whether it came to its end."""
    ended = tokens[-1] in settings.stop_ids  # with the last token allowed too, which vLLM may call an end for want of room
    visible = tokens[: len(tokens) - ended]
    if not settings.stop_strings:
        return tokenizer.decode(visible), ended
    stream = TextStream(tokenizer, settings.stop_strings)
    for token in visible:
        stream.push(token)
    stream.finish()
    return stream.text, ended or stream.stopped


def _index(choice: Any) -> int:
    return choice["index"] if isinstance(choice, dict) and isinstance(choice.get("index"), int) else -1


def _parsed(said: bytes) -> Any:
    try:
        return json.loads(said)
    except ValueError:
        return said.decode("utf-8", "replace")  # adapters are acknowledged in a sentence


def _message(error: urllib.error.HTTPError) -> str:
    """What a refusal says, in one line."""
    said = _parsed(error.read())
    while isinstance(said, dict):
        said = said.get("error") or said.get("message") or said.get("detail") or error.reason
    return (str(said).strip().splitlines() or [str(error.reason)])[0][:300]
