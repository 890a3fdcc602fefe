"""OpenAssistant's message trees (Köpf et al. 2023), one conversation of each: the best-ranked reply at every step. Read only.

    {"prompt": {"text": …, "role": "prompter", "replies": [{"text": …, "role": "assistant", "rank": 0, "replies": […]}]}}

A reply without a rank stands behind those that have one; deleted replies, and those the reviewers refused, are passed over. A path ends
with its last answer. `oasst_pairs` reads the same trees as preference pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from luthier.data.examples import Conversation, Example, Message, Origin
from luthier.data.formats.fields import kind
from luthier.data.formats.turns import messages_from
from luthier.data.formats.written import read_only
from luthier.data.problems import RowError

NAME = "oasst"
ABOUT = "OpenAssistant trees: the best-ranked conversation of each (read only)"
COLUMNS = ("prompt",)
MAKES: tuple[type[Example], ...] = (Conversation,)


def matches(row: Any) -> bool:
    """Whether the row is a tree of messages."""
    return isinstance(row, dict) and isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """The best path of one tree as a conversation.

    Raises:
        RowError: the tree is malformed, or has no answer.
    """
    node = root_of(row, columns)
    turns = [turn_of(node)]
    while replies := replies_of(node):
        node = replies[0]
        turns.append(turn_of(node))
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RowError("the tree has no answer")
    return [Conversation(messages_from(turns, {}), origin)]


def write(_example: Example) -> NoReturn:
    """Trees are only read.

    Raises:
        RowError: always.
    """
    read_only(NAME)


def root_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The first message of a tree.

    Raises:
        RowError: there is none.
    """
    column = columns.get("prompt", "prompt")
    root = row.get(column)
    if not isinstance(root, dict):
        raise RowError(f"missing `{column}`" if root is None else f"`{column}` is {kind(root)}, it should be a message")
    return root


def replies_of(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The replies to a message that count, the best first.

    Raises:
        RowError: they are not a list of messages.
    """
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise RowError("`replies` should be a list of messages")
    kept = [reply for reply in replies if not reply.get("deleted") and reply.get("review_result") is not False]
    return sorted(kept, key=lambda reply: rank_of(reply, 1 << 30))


def rank_of(reply: Mapping[str, Any], otherwise: int) -> int:
    """The rank of a reply, 0 the best."""
    rank = reply.get("rank")
    return rank if isinstance(rank, int) else otherwise


def turn_of(node: Mapping[str, Any]) -> Message:
    """A message of a tree as a turn.

    Raises:
        RowError: it has no text.
    """
    if not isinstance(node.get("text"), str):
        raise RowError(f"a message's `text` is {kind(node.get('text'))}, it should be text")
    return {"role": str(node.get("role")), "content": node["text"]}


def paths(
    node: Mapping[str, Any], before: tuple[Message, ...] = ()
) -> Iterator[tuple[tuple[Message, ...], list[dict[str, Any]]]]:
    """Every message of a tree with what was said up to it, and the replies to it, the best first."""
    waiting = [(node, before)]
    while waiting:
        here, said = waiting.pop()
        said = (*said, turn_of(here))
        replies = replies_of(here)
        yield said, replies
        waiting.extend((reply, said) for reply in reversed(replies))
