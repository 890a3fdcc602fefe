"""What only a template and a tokenizer can say: how many tokens a row has, whether it fits, and whether anything in it is learnt.

Rows become text and tokens as they do in training, a batch at a time. What a row would lose by being cut is left to
`data.truncate`; here it is enough that it would be cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.chat import ChatTemplate, TemplateRefused
from luthier.chat.template import TrainOn
from luthier.data.doctor.lengths import Lengths
from luthier.data.doctor.row import Row, talks
from luthier.data.encode import Span, joined, weigh
from luthier.data.examples import Conversation, Document, Example, Prompt
from luthier.data.problems import printable
from luthier.data.tokenizer import Tokenizer

_LONGEST = 160
_NOTHING = re.compile(r"weight 0|no answer to learn|nothing to learn")


class Tokens:
    """Counts tokens, supervised ones too.

    Args:
        tokenizer: the model's.
        template: the chat template.
        max_length: the most tokens a segment may have.

    Attributes:
        lengths: tokens of each segment.
        supervised: tokens that are learnt, over all rows.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, max_length: int) -> None:
        self._tokenizer, self._template, self._limit = tokenizer, template, max_length
        self.lengths = Lengths("tokens")
        self.supervised = 0

    def __call__(self, rows: Sequence[Row]) -> None:
        """Look at a batch of rows."""
        drafts: list[tuple[Row, str, str, tuple[Span, ...] | None]] = []
        for row in rows:
            for example in row.examples:
                drafts += [(row, *segment) for segment in self._segments(row, example)]
        encoded = self._tokenizer.encode_batch([text for _, _, text, _ in drafts])
        for (row, side, _, spans), tokens in zip(drafts, encoded, strict=True):
            length = len(tokens.ids)
            self.lengths.add(length)
            if spans is None:
                continue
            weights = weigh(tokens, spans)
            learnt = int((weights[1:] != 0).sum())
            self.supervised += learnt
            if not learnt and not row.has("empty", "unsupervised"):
                row.find("unsupervised", "no token of it would be learnt", side)
            elif length > self._limit:
                row.find("too-long", f"has {length:,} tokens, {length - self._limit:,} more than {self._limit:,}", side)
                if not (weights[1 : self._limit] != 0).any():
                    row.find("unsupervised", f"its first {self._limit:,} tokens hold nothing to learn", side)

    def _segments(self, row: Row, example: Example) -> list[tuple[str, str, tuple[Span, ...] | None]]:
        """Texts of an example with the spans that are learnt; without spans where length does not matter or nothing is answered."""
        if isinstance(example, Document):
            return [("", example.text, None)]  # documents are split, not cut
        tools = example.tools
        if isinstance(example, Prompt):
            return []
        train_on: TrainOn = "assistant" if isinstance(example, Conversation) else "last"
        found: list[tuple[str, str, tuple[Span, ...] | None]] = []
        for side, messages in talks(example):
            try:
                for item in self._template.supervise(messages, tools, train_on):
                    found.append((side, item.text, joined(item.spans)))
            except TemplateRefused as error:
                said = printable(str(error), _LONGEST)
                if _NOTHING.search(said):
                    row.find("unsupervised", said, side)
                else:
                    row.find("refused", f"the template refuses it: {said}", side)
        return found
