"""A model that is examined: it says how likely texts are, and it answers.

The two questions are put as the world puts them. Likelihoods are of plain text, begun as plain calls of the tokenizer begin it, so that
they are those of lm-evaluation-harness; answers are to prompts in the model's chat template, as in `luthier chat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.chat import TemplateRefused
from luthier.data.control_tokens import ControlTokens
from luthier.data.texts import written
from luthier.errors import UserError
from luthier.evaluation.likelihood import Done, Likelihood, Passage, likelihoods
from luthier.generation.bulk import Written, write_answers
from luthier.generation.chat import ChatModel
from luthier.generation.decode import context_length
from luthier.generation.sampling import Decoding
from luthier.models.linear import count_weights
from luthier.models.methods import Trainable
from luthier.models.policy import Policy

LONGEST = 2048
"""Tokens of a window where neither the model nor a task names a limit."""
TOGETHER = 128
"""Prompts that are answered between two reports of the progress."""
Messages = Sequence[Mapping[str, Any]]


class Examinee:
    """A model at an examination.

    Args:
        chat: the model with its tokenizer and template.
        policy: the same model as a policy. Default: made here.
        system: system prompt for questions that bring none.

    Attributes:
        chat, policy, system: as given.
        longest: positions that the model reads, or `LONGEST`.
    """

    def __init__(self, chat: ChatModel, policy: Policy | None = None, *, system: str | None = None) -> None:
        self.chat, self.system = chat, system
        self.policy = policy or Policy(chat.model, Trainable({}, count_weights(chat.model), 0))
        self.context = context_length(chat.model)
        self.longest = self.context or LONGEST
        self._control = ControlTokens(chat.tokenizer.control_tokens)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.chat.name

    @property
    def first(self) -> int:
        """The token before a text that has nothing before it: that which begins texts, else that which ends them."""
        tokenizer = self.chat.tokenizer
        found = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        return tokenizer.pad_id if found is None else found

    def tokens(self, text: str) -> list[int]:
        """Ids of a text as plain calls of the tokenizer give them; a BOS token that is written out is not doubled."""
        tokenizer = self.chat.tokenizer
        bare = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
        front = [] if bare else tokenizer.around[0]
        return [*front, *map(int, tokenizer.encode(text).ids)]

    def passage(self, context: str, continuation: str) -> Passage:
        """A continuation behind a context, divided as the module `likelihood` says."""
        if not context:
            tokens = self.tokens(continuation)
            return Passage.of(tokens[:1], tokens[1:]) if tokens[0] == self.first else Passage.of([self.first], tokens)
        whole, count = self.tokens(context + continuation), len(self.tokens(context.rstrip()))
        return Passage.of(whole[:count], whole[count:])

    def answer_passage(self, messages: Messages, answer: str) -> Passage:
        """An answer behind a conversation in the chat template, tokenised whole as in training.

        Raises:
            UserError: the template refuses the conversation.
        """
        template, encode = self.chat.template, self.chat.tokenizer.encode
        try:
            text, letters = written(template, self._control, self._with_system(messages), None)
        except TemplateRefused as refused:
            raise UserError(f"the chat template `{template.name}` refuses this conversation: {refused}") from refused
        whole, count = encode(text + answer, letters).ids, len(encode(text.rstrip(), letters).ids)
        return Passage.of(list(whole[:count]), list(whole[count:]))

    def likelihoods(
        self, passages: Sequence[Passage], *, longest: int | None = None, done: Done | None = None
    ) -> list[Likelihood]:
        """How likely the asked tokens of each passage are. Arguments are those of `likelihood.likelihoods`."""
        return likelihoods(self.policy, passages, longest=longest or self.longest, done=done)

    def prompt(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Token ids of a conversation up to where the answer begins."""
        return self.chat.prompt(self._with_system(messages), tools=tools)

    def answers(
        self, prompts: Sequence[Sequence[int]], settings: Decoding, *, done: Done | None = None
    ) -> tuple[list[Written], int]:
        """An answer to each prompt, and how many prompts had to lose their beginning to leave room for one."""
        fitting = [self._fitting(prompt, settings.max_new_tokens) for prompt in prompts]
        answers: list[Written] = []
        for begin in range(0, len(fitting), TOGETHER):
            part = fitting[begin : begin + TOGETHER]
            answers += write_answers(self.chat.model, self.chat.tokenizer, part, settings, first=begin)
            if done:
                done(len(answers), len(fitting))
        return answers, sum(len(kept) < len(prompt) for kept, prompt in zip(fitting, prompts, strict=True))

    def decoding(self, *, plain: bool = False, **settings: Any) -> Decoding:
        """Settings of an answer; a plain text ends at a token that ends texts, not where the template's next turn begins."""
        if plain:
            return Decoding(stop_ids=self.chat.stop_ids(), **settings)
        return self.chat.decoding(**settings)

    def _fitting(self, prompt: Sequence[int], room: int) -> Sequence[int]:
        return prompt if self.context is None else prompt[-max(1, self.context - min(room, self.context // 2)) :]

    def _with_system(self, messages: Messages) -> list[Mapping[str, Any]]:
        bare = self.system and not any(message["role"] == "system" for message in messages)
        return [{"role": "system", "content": self.system}, *messages] if bare else list(messages)
