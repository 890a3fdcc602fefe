"""What only a template and a tokenizer can say: how many tokens a row has, whether it fits, and whether anything in it is learnt.

Rows become text and tokens as they do in training, a batch at a time. What a row would lose by being cut is left to
`data.truncate`; here it is enough that it would be cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from luthier.chat import ChatTemplate, TemplateRefused
from luthier.chat.template import TrainOn
from luthier.data.control_tokens import ControlTokens
from luthier.data.doctor.lengths import Lengths
from luthier.data.doctor.row import Row, talks
from luthier.data.encode import Encoder, Settings, weigh
from luthier.data.examples import Conversation, Document, Example, Prompt
from luthier.data.problems import printable
from luthier.data.texts import Text, supervised
from luthier.data.tokenizer import Tokenizer

_LONGEST = 160
_NOTHING = re.compile(r"weight 0|no answer to learn|nothing to learn")


class _Segment(NamedTuple):
    """A text of a row, the side of the pair that it is, and whether its length and what is learnt of it matter."""

    row: Row
    side: str
    text: Text
    matters: bool = True


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
        self._template, self._limit = template, max_length
        self._encoder = Encoder(tokenizer, template, Settings("sft", max_length))
        self._control = ControlTokens(tokenizer.control_tokens)
        self.lengths = Lengths("tokens")
        self.supervised = 0

    def __call__(self, rows: Sequence[Row]) -> None:
        """Look at a batch of rows."""
        segments = [segment for row in rows for example in row.examples for segment in self._segments(row, example)]
        for segment, tokens in zip(segments, self._encoder.encode([each.text for each in segments]), strict=True):
            row, side, length = segment.row, segment.side, len(tokens.ids)
            self.lengths.add(length)
            if not segment.matters:
                continue
            weights = weigh(tokens, segment.text.spans)
            learnt = int((weights[1:] != 0).sum())
            self.supervised += learnt
            if not learnt and not row.has("empty", "unsupervised"):
                row.find("unsupervised", "no token of it would be learnt", side)
            elif length > self._limit:
                row.find("too-long", f"has {length:,} tokens, {length - self._limit:,} more than {self._limit:,}", side)
                if not (weights[1 : self._limit] != 0).any():
                    row.find("unsupervised", f"its first {self._limit:,} tokens hold nothing to learn", side)

    def _segments(self, row: Row, example: Example) -> list[_Segment]:
        """Texts of an example; the length of a document does not matter, and a prompt without an answer has none."""
        if isinstance(example, Document):
            return [_Segment(row, "", Text(example.text, (), "all"), matters=False)]  # documents are split, not cut
        if isinstance(example, Prompt):
            return []
        train_on: TrainOn = "assistant" if isinstance(example, Conversation) else "last"
        found: list[_Segment] = []
        for side, messages in talks(example):
            try:
                texts = supervised(self._template, self._control, messages, example.tools, train_on)
                found += [_Segment(row, side, text) for text in texts]
                letters = [text.text[begin:end] for text in texts for begin, end in text.letters[:1]]
                if letters and not row.has("special-token"):
                    row.find("special-token", f"holds `{printable(letters[0])}`", side)
            except TemplateRefused as error:
                said = printable(str(error), _LONGEST)
                if _NOTHING.search(said):
                    row.find("unsupervised", said, side)
                else:
                    row.find("refused", f"the template refuses it: {said}", side)
        return found
