"""A model that one can talk to: weights, tokenizer and chat template in one object.

The prompt of each turn is the whole conversation, rendered by the same template and tokenised in the same way as in training,
so the model sees in a chat exactly what it saw when it learnt; control tokens that somebody types are letters. An answer ends
at a token that the model or the tokenizer calls an end, or where the template's next turn would begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.chat import TemplateRefused
from luthier.data.control_tokens import ControlTokens
from luthier.data.texts import written
from luthier.errors import UserError
from luthier.generation.decode import Answer, Decoder, Request, generate
from luthier.generation.prefix import Prefixes
from luthier.generation.sampling import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.chat import ChatTemplate
    from luthier.data.tokenizer import Tokenizer

Messages = str | Sequence[Mapping[str, Any]]
"""A question, or a whole conversation: messages with `role` and `content`, the last one to be answered."""
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions."""


class ChatModel:
    """A language model with a memory for conversations that the caller holds.

        model = luthier.load("first")
        model.chat("你是谁？")
        model.chat([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "+1?"}])
        for text in model.stream("Tell me a story", temperature=0.8, max_new_tokens=200):
            print(text, end="", flush=True)

    Args:
        model: a causal language model of transformers, adapters included.
        tokenizer: its tokenizer.
        template: its chat template.
        name: what to call it in messages.

    Attributes:
        model, tokenizer, template, name: as given.
        prefixes: set to `Prefixes()`, what was read of a conversation serves its next turn. Only for weights that stay what they are.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, template: ChatTemplate, *, name: str = "model") -> None:
        self.model, self.tokenizer, self.template, self.name = model, tokenizer, template, name
        self.prefixes: Prefixes | None = None
        self._control = ControlTokens(tokenizer.control_tokens)

    def chat(
        self,
        messages: Messages,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        thinking: bool | None = None,
        **decoding: Any,
    ) -> str:
        """The answer to a question or to the last message of a conversation.

        Args:
            messages: a question, or messages with `role` and `content`.
            system: a system prompt for conversations that bring none.
            tools: JSON schemas of functions, in OpenAI's form, for templates that know tools.
            thinking: whether the model thinks before it answers, for templates that leave the choice; None is the template's own.
            decoding: fields of `Decoding`: `temperature`, `max_new_tokens`, `top_p`, `seed` … The default is greedy.

        Returns:
            The text, without special tokens and stop strings.

        Raises:
            UserError: the template refuses the conversation, it fills the model's context, or a setting is out of range.
            TypeError: a setting that does not exist.
        """
        return "".join(self.stream(messages, system=system, tools=tools, thinking=thinking, **decoding))

    def stream(
        self,
        messages: Messages,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        thinking: bool | None = None,
        **decoding: Any,
    ) -> Iterator[str]:
        """The same answer in pieces, as they are written. Closing the iterator ends the answer."""
        conversation = _conversation(messages, system)
        turn = sum(message["role"] == "assistant" for message in conversation)
        decoder = Decoder(self.model, self.tokenizer, slots=1, prefixes=self.prefixes)
        prompt = self.prompt(conversation, tools=tools, thinking=thinking)
        decoder.submit(Request(prompt, self.decoding(**decoding), index=turn))
        return (piece.text for piece in decoder.run() if piece.text)

    def answers(
        self,
        questions: Sequence[Messages],
        *,
        system: str | None = None,
        tools: Sequence[Tools | None] | None = None,
        thinking: bool | None = None,
        **decoding: Any,
    ) -> list[Answer]:
        """Answers to many questions or conversations, written together. Arguments and errors are those of `chat`; `tools` of each."""
        offered = tools or [None] * len(questions)
        pairs = zip(questions, offered, strict=True)
        prompts = [self.prompt(messages, system=system, tools=each, thinking=thinking) for messages, each in pairs]
        return generate(self.model, self.tokenizer, prompts, self.decoding(**decoding))

    def prompt(
        self,
        messages: Messages,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        thinking: bool | None = None,
        **extra: Any,
    ) -> list[int]:
        """Token ids of a conversation up to where the answer begins; `extra` are further names for the template."""
        conversation = _conversation(messages, system)
        try:
            text, letters = written(self.template, self._control, conversation, tools, **_switch(thinking), **extra)
        except TemplateRefused as refused:
            raise UserError(f"the chat template `{self.template.name}` refuses this conversation: {refused}") from refused
        return [int(token) for token in self.tokenizer.encode(text, letters).ids]

    def decoding(self, **settings: Any) -> Decoding:
        """Settings with this model's own ends of an answer added."""
        strings = dict.fromkeys((*settings.pop("stop_strings", ()), *self.template.stop_strings))
        ids = self.stop_ids() | frozenset(settings.pop("stop_ids", ()))
        return Decoding(stop_ids=ids, stop_strings=tuple(strings), **settings)

    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: of the tokenizer, of the model's generation config, and of the template.

        A stop string that is one token of the vocabulary, such as `<|im_end|>`, has to be met as a token: as a special token it
        never becomes visible text.
        """
        declared = self.model.generation_config.eos_token_id if self.model.generation_config else None
        found = {self.tokenizer.eos_id, *(declared if isinstance(declared, list) else [declared])}
        for string in self.template.stop_strings:
            ids = self.tokenizer.encode(string).ids
            if len(ids) == 1:
                found.add(int(ids[0]))
        return frozenset(token for token in found if token is not None)


def _switch(thinking: bool | None) -> dict[str, bool]:
    """What tells a template whether to think: by the name of Qwen 3 and many others, and by that of Granite and DeepSeek V3.1."""
    return {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}


def _conversation(messages: Messages, system: str | None) -> list[dict[str, Any]]:
    """`messages` as a list, with `system` first if they bring no system prompt."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    conversation = [dict(message) for message in messages]
    if system and not any(message.get("role") == "system" for message in conversation):
        conversation.insert(0, {"role": "system", "content": system})
    return conversation
