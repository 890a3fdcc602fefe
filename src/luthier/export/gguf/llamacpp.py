"""llama.cpp as a reader of what was written: tokens and logits, through `llama-cpp-python` where that is installed.

Its cache of keys and values is asked for in float32, so that a file in `f32` is computed as transformers computes it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from luthier.errors import UserError

_TOOL = "llama-quantize"
_FLOAT32 = 0  # ggml's number for it


def installed() -> bool:
    """Whether `llama-cpp-python` is there."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """A GGUF file in llama.cpp.

    Args:
        file: to read.
        length: longest text, in tokens.
        lora: an adapter in GGUF to put on it.

    Raises:
        UserError: llama.cpp cannot read it.
    """

    def __init__(self, file: Path, *, length: int = 512, lora: Path | None = None) -> None:
        import llama_cpp

        try:
            self._model: Any = llama_cpp.Llama(
                str(file),
                n_ctx=length,
                n_batch=length,
                n_ubatch=length,
                n_threads=1,
                logits_all=True,
                type_k=_FLOAT32,
                type_v=_FLOAT32,
                lora_path=str(lora) if lora else None,
                verbose=False,
            )
        except ValueError as error:
            raise UserError(f"llama.cpp does not read what was written ({error})", where=str(file)) from error

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._model.close()

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, control tokens in it included, without one that begins it."""
        return [int(token) for token in self._model.tokenize(text.encode(), add_bos=False, special=True)]

    def text(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return str(self._model.detokenize(tokens).decode("utf-8", errors="replace"))

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [T, V] behind each prefix of the tokens [T], float32."""
        self._model.reset()
        self._model.eval(tokens.tolist())
        return torch.from_numpy(self._model.scores[: len(tokens)].copy())

    def greedy(self, tokens: list[int], count: int, ends: list[int]) -> list[int]:
        """The likeliest continuation, up to a token that ends it."""
        found: list[int] = []
        self._model.reset()
        self._model.eval(tokens)
        while len(found) < count:
            token = int(self._model.scores[self._model.n_tokens - 1].argmax())
            if token in ends:
                break
            found.append(token)
            self._model.eval([token])
        return found


def requantise(file: Path, out: Path, kind: str) -> None:
    """Write a GGUF file in another type by llama.cpp's own tool.

    Args:
        file: in 16 or 32 bits.
        out: to write.
        kind: as the tool calls it, such as `q4_k_m`.

    Raises:
        UserError: the tool is not there, or refuses.
    """
    tool = shutil.which(_TOOL)
    if tool is None:
        raise UserError(
            f"type `{kind}` is written by llama.cpp's own `{_TOOL}`, which is not on the PATH",
            where="--type",
            hint="Install llama.cpp, or take f32, f16, bf16 or q8_0.",
        )
    ended = subprocess.run([tool, str(file), str(out), kind.upper()], capture_output=True, text=True, check=False)
    if ended.returncode or not out.is_file():
        last = ((ended.stderr or ended.stdout).strip().splitlines() or ["no message"])[-1]
        raise UserError(f"`{_TOOL}` failed ({last})", where="--type")
