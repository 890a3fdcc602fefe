r"""Ollama: a GGUF file and a `Modelfile` that says how to talk to it.

Ollama writes conversations by templates of Go, not of Jinja, so the chat template is translated. Not its source but its behaviour: it
is asked to render short conversations of known words, and what it writes around them is the translation:

    first ┬ no system prompt:  before the first question
          └ system prompt:     before it, between it and the first question
    then                       after a question, before an answer, after an answer, before the next question
    at last                    between the last question and the answer that is wanted

This covers templates that put the system prompt into the first question (Llama 2, Gemma, Mistral) as well as those that give it a
turn of its own or have a standard one. What it writes is held against the Jinja template on longer conversations; a template that does
more than that, and shows it there, is refused. Tools and thoughts are not translated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.chat import ChatTemplate, TemplateRefused
from luthier.errors import UserError
from luthier.export.check import Difference
from luthier.export.folder import new_folder
from luthier.export.gguf.export import write_checked
from luthier.export.source import ready
from luthier.export.tensors import free_folder
from luthier.generation.sampling import Decoding

if TYPE_CHECKING:
    from luthier.export.source import Ready

SYSTEM, USER, ASSISTANT = "s y s t e m", "q u e s t i o n", "a n s w e r"
"""What the probes say; no template says it."""
LONGEST = 8192
"""Context that Ollama is told to keep room for, at most."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a template writes around the words of a conversation.

    Attributes:
        opening: before the first question, where there is no system prompt.
        before_system: before the system prompt.
        after_system: between it and the first question.
        after_user: after a question.
        before_assistant: between that and an answer.
        after_assistant: after an answer.
        before_user: between that and the next question.
        prompt: between the last question and the answer that is wanted.
    """

    opening: str
    before_system: str | None
    after_system: str
    after_user: str
    before_assistant: str
    after_assistant: str
    before_user: str
    prompt: str

    def text(self, messages: Sequence[Message]) -> str:
        """A conversation as Ollama will write it, up to the next answer."""
        system = next((message["content"] for message in messages if message["role"] == "system"), None)
        turns = [message for message in messages if message["role"] != "system"]
        start = self.opening if system is None else f"{self.before_system}{system}{self.after_system}"
        parts: list[str] = []
        for number, turn in enumerate(turns):
            before, after = (self.before_user, self.after_user) if number else (start, self.after_user)
            if turn["role"] == "assistant":
                before, after = self.before_assistant, self.after_assistant
            parts += [before, turn["content"], after]
        return "".join(parts) + self.prompt

    def go(self) -> str:
        """The same as a template of Go.

        Raises:
            UserError: a piece holds what ends a template or the text of a Modelfile.
        """
        for piece in (self.opening, self.before_system or "", self.after_system, self.after_user, self.before_assistant):
            if "{{" in piece or '"""' in piece:
                raise UserError("the chat template writes `{{` or quotes in threes, which Ollama's cannot", where="template")
        start = self.opening
        if self.before_system is not None:
            start = f"{{{{ if $.System }}}}{self.before_system}{{{{ $.System }}}}{self.after_system}{{{{ else }}}}{start}{{{{ end }}}}"
        first = "or (eq $i 0) (and (eq $i 1) $.System)"
        return (
            "{{ range $i, $_ := .Messages }}"
            f'{{{{ if eq .Role "user" }}}}{{{{ if {first} }}}}{start}{{{{ else }}}}{self.before_user}{{{{ end }}}}'
            f"{{{{ .Content }}}}{self.after_user}"
            f'{{{{ else if eq .Role "assistant" }}}}{self.before_assistant}{{{{ .Content }}}}{self.after_assistant}{{{{ end }}}}'
            f"{{{{ end }}}}{self.prompt}"
        )


def pieces_of(template: ChatTemplate, begins: str = "") -> Pieces:
    """What a template writes around the words of a conversation.

    Args:
        template: a chat template.
        begins: text that Ollama puts before everything by itself: that of a token that begins texts.

    Raises:
        UserError: it does more than put texts around words.
    """

    def render(*messages: Message, prompt: bool = False) -> str:
        return template.render(list(messages), add_generation_prompt=prompt).removeprefix(begins)

    user, assistant = {"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}
    try:
        opening, after_user = _around(render(user), USER)
        _, tail = _around(render(user, prompt=True), USER)
        if not tail.startswith(after_user):
            after_user = ""
        between, rest = _around(render(user, assistant, user, prompt=True).partition(USER)[2], ASSISTANT)
        after_assistant, (before_user, _) = "", _around(rest, USER)
        ended = _around(render(user, assistant), ASSISTANT)[1]
        if ended and before_user.startswith(ended):
            after_assistant, before_user = ended, before_user.removeprefix(ended)
        found = Pieces(
            opening=opening,
            **_system(render, user, after_user),
            after_user=after_user,
            before_assistant=between.removeprefix(after_user),
            after_assistant=after_assistant,
            before_user=before_user,
            prompt=tail.removeprefix(after_user),
        )
        same = _agrees(found, render)
    except (TemplateRefused, ValueError):
        same = False
    if not same:
        raise UserError(
            f"the chat template ({template.name}) does more than put texts around words, which Ollama's templates cannot follow",
            where="template",
            hint="llama.cpp itself reads the template in the GGUF file: `luthier export gguf`.",
        )
    return found


def _system(render: Callable[..., str], user: Message, after_user: str) -> dict[str, Any]:
    """What stands around a system prompt; None before it where the template refuses one."""
    try:
        before, rest = _around(render({"role": "system", "content": SYSTEM}, user), SYSTEM)
        return {"before_system": before, "after_system": _around(rest, USER)[0]}
    except (TemplateRefused, ValueError):
        return {"before_system": None, "after_system": ""}


def _around(text: str, word: str) -> tuple[str, str]:
    """What stands before and after a word.

    Raises:
        ValueError: the word is not there.
    """
    before, found, after = text.partition(word)
    if not found:
        raise ValueError(word)
    return before, after


def _agrees(pieces: Pieces, render: Callable[..., str]) -> bool:
    """Whether the pieces make the same of longer conversations as the template does."""
    said = [("user", "你好 1"), ("assistant", "Yes: x < 2"), ("user", "and\nthen?"), ("assistant", "第三"), ("user", "end")]
    messages = [{"role": role, "content": text} for role, text in said]
    trials = [messages[:count] for count in (1, 3, 5)]
    if pieces.before_system is not None:
        trials += [[{"role": "system", "content": "Be brief."}, *trial] for trial in trials]
    return all(pieces.text(trial) == render(*trial, prompt=True) for trial in trials)


def modelfile(model: Ready, file: str) -> str:
    """The `Modelfile` of a model.

    Args:
        model: with its template.
        file: name of the GGUF file beside it.

    Raises:
        UserError: the model has no chat template, or one that Ollama cannot follow.
    """
    if model.template is None:
        raise UserError("the model has no chat template", where=model.name, hint="Export it with `luthier export gguf`.")
    tokenizer = model.tokenizer
    begins = tokenizer.bos_token if tokenizer.adds_bos and tokenizer.bos_token else ""
    lines = [f"FROM ./{file}", f'TEMPLATE """{pieces_of(model.template, begins).go()}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in model.template.stop_strings]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters(model).items()]
    return "\n".join(lines) + "\n"


def parameters(model: Ready) -> dict[str, float | int]:
    """Settings of Ollama, as the model's generation config and its size give them."""
    found: dict[str, float | int] = {}
    length = getattr(model.config, "max_position_embeddings", None)
    if length:
        found["num_ctx"] = min(int(length), LONGEST)
    file = model.folder / "generation_config.json"
    given = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if given.get("do_sample") is False or not {"temperature", "top_p", "top_k"} & given.keys():
        return found | {"temperature": Decoding().temperature}
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
    return found | {to: given[name] for name, to in names.items() if given.get(name) is not None}


def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'


def export_ollama(
    name: str | Path,
    out: str | Path,
    *,
    kind: str = "q8_0",
    adapter: str | Path | None = None,
    checkpoint: int | None = None,
    tolerance: float | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Difference | None:
    """Write a folder for `ollama create`: `model.gguf` and `Modelfile`. Arguments, result and errors are those of `export_gguf`.

    Raises:
        UserError: also for a chat template that Ollama cannot follow, or a folder that holds something.
    """
    out = free_folder(out)
    with new_folder(out) as temporary:
        file = temporary / "model.gguf"
        with ready(name, out, adapter=adapter, checkpoint=checkpoint, dtype="float32") as model:
            (temporary / "Modelfile").write_text(modelfile(model, file.name), encoding="utf-8")
            return write_checked(model, file, kind=kind, tolerance=tolerance, tell=tell)
