"""Who writes the answers of a rollout: the policy in training itself, or a vLLM server that has its adapter."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from luthier.data.tokenizer import Tokenizer
from luthier.engine.parallel import World
from luthier.errors import UserError
from luthier.generation.bulk import Written, write_answers
from luthier.generation.sampling import Decoding
from luthier.generation.served import VLLMServer
from luthier.models.loading import embedding_rows
from luthier.models.policy import Policy
from luthier.recipe.schema import VLLM


@dataclass(frozen=True, slots=True)
class PolicyWriter:
    """The policy in training writes its answers itself, adapters and all; nothing is merged or copied.

    Attributes:
        model: the model, as it is at each call.
        tokenizer: decodes token ids.
        settings: how to answer.
        answers: to each prompt.
        rows: most answers at once.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    settings: Decoding
    answers: int
    rows: int

    def __call__(self, prompts: Sequence[Sequence[int]], first: int) -> list[Written]:
        """See `engine.rollout.Writer`."""
        how = {"answers": self.answers, "first": first, "rows": self.rows}
        return write_answers(self.model, self.tokenizer, prompts, self.settings, **how)


class Followed:
    """A server that is given the policy's adapter, as it is, before each rollout.

    The adapter is written as a PEFT folder on a disk that both see, and read by the server under a name of its own, so that nothing which
    the server has cached of an earlier one is taken for it. The main rank does that; the others wait, and ask for the same name.

    Args:
        section: of the recipe.
        policy: the policy in training, with a LoRA adapter.
        world: the processes.

    Raises:
        UserError: the server does not answer, or the folder cannot be written.
    """

    def __init__(self, section: VLLM, policy: Policy, world: World) -> None:
        self.policy, self.world = policy, world
        how = {"requests": section.requests, "timeout": section.timeout, "vocabulary": embedding_rows(policy.model.config)}
        self.server = VLLMServer(section.url, token=_token(section.token_env), **how)  # type: ignore[arg-type]
        (self._run, *_) = world.gathered(f"luthier-{secrets.token_hex(4)}")
        self._folder = _laid_in(section.folder) if world.main else None
        self._count = 0

    def present(self) -> str:
        """The name under which the server has the adapter as it is now."""
        before, self._count = f"{self._run}-{self._count}", self._count + 1
        name = f"{self._run}-{self._count}"
        if self._folder is not None:
            folder = Path(self._folder.name)
            self.policy.save(folder / name)
            if self._count > 1:
                self.server.unload(before)
                shutil.rmtree(folder / before)
            self.server.load(name, folder / name)
        self.world.barrier()
        return name


@dataclass(frozen=True, slots=True)
class ServedWriter:
    """A vLLM server writes the answers.

    Attributes:
        followed: the server, which follows the policy.
        tokenizer: decodes token ids.
        settings: how to answer.
        answers: to each prompt.
    """

    followed: Followed
    tokenizer: Tokenizer
    settings: Decoding
    answers: int

    def __call__(self, prompts: Sequence[Sequence[int]], first: int) -> list[Written]:
        """See `engine.rollout.Writer`."""
        name, how = self.followed.present(), {"answers": self.answers, "first": first}
        return self.followed.server.write(name, self.tokenizer, prompts, self.settings, **how)


def _laid_in(folder: str) -> TemporaryDirectory[str]:
    """A folder for adapters, which goes when the run ends; the server may be another user."""
    try:
        made = TemporaryDirectory(prefix="luthier-", dir=Path(folder).resolve() if folder else None, ignore_cleanup_errors=True)
        Path(made.name).chmod(0o755)
    except OSError as error:
        raise UserError(f"no adapter can be written to `{folder}`: {error.strerror}", where="stage.writer.folder") from error
    return made


def _token(variable: str) -> str:
    token = os.environ.get(variable, "").strip() if variable else ""
    if variable and not token:
        raise UserError(f"the environment variable `{variable}` is empty", where="stage.writer.token_env", hint="Set it.")
    return token
