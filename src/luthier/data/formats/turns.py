"""Turns of a conversation, in any of the common spellings, as messages; and the order they must have.

A turn is `{"role", "content"}` (OpenAI) or `{"from", "value"}` (ShareGPT), or a mixture of both. Its content is text, or a list of
parts that are text, reasoning or tool calls. The order is the one that chat templates are written for: an optional system turn,
then user and assistant by turns, where the results of tools stand between two assistant turns. An answer comes last, since it is
what is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.examples import Message
from luthier.data.formats.fields import kind, structure_of
from luthier.data.problems import RowError

CALL = "call"
"""Not a role of messages: a turn whose content is a tool call, written as JSON."""

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
"""Names of roles in the wild → role of a message."""

ROLE_COLUMNS = ("role", "content", "role.system", "role.user", "role.assistant", "role.tool", "role.call")
"""Names that `columns` may hold for turns: the two keys of a turn, and what the roles are called in the file."""
ANSWERED, ASKED = ("assistant",), ("user", "tool")
"""Roles that end a conversation to learn from, and a prompt."""

_WEIGHTS = ("weight", "loss_weight", "loss")
_LEAST, _MOST = 1e-4, 65_504
"""Loss weights are stored as float16, which holds these and what is between, and 0."""
_KEPT = ("name", "tool_call_id")


def messages_from(
    turns: Any, columns: Mapping[str, str], system: str = "", what: str = "the row", *, last: tuple[str, ...] = ANSWERED
) -> tuple[Message, ...]:
    """Turns as messages in a valid order.

    Args:
        turns: list of turns, or JSON of one.
        columns: own names of `role`, `content` and of the roles themselves (`role.user`, `role.assistant`, …), if any.
        system: a system prompt beside the turns; a system turn takes its place.
        what: what the list is called in messages to the user.
        last: roles that the last message may have: `ANSWERED` for what is learnt, `ASKED` for a prompt.

    Raises:
        RowError: a turn is malformed or out of order; names the turn, counted from 1.
    """
    turns = structure_of(turns, what) if isinstance(turns, str) else turns
    if not isinstance(turns, list | tuple):
        raise RowError(f"{what} is {kind(turns)}, it should be a list of turns")
    if not turns:
        raise RowError(f"{what} is empty")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        message = _message(turn, columns, f"turn {number}")
        if message["role"] == CALL:
            _add_call(messages, message, f"turn {number}")
            continue
        if message["role"] == "tool":
            _link(message, messages)
        _check_order(messages, message["role"], f"turn {number}")
        if message["role"] != "system" or message["content"]:
            messages.append(message)
    ending = messages[-1]["role"] if messages else "system"
    if ending not in last:
        wanted = "an assistant" if last == ANSWERED else "a user"
        found = "an assistant" if ending == "assistant" else f"a {ending}"
        raise RowError(f"the last turn is {found} turn, it should be {wanted} turn")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return tuple(messages)


def _message(turn: Any, columns: Mapping[str, str], where: str) -> Message:
    """One turn as a message; its role may still be `CALL`."""
    if not isinstance(turn, dict):
        raise RowError(f"{where} is {kind(turn)}, it should be a mapping")
    named = _first(turn, (columns.get("role", "role"), "from"))
    if named is None:
        raise RowError(f"{where}: missing `{'from' if 'value' in turn else columns.get('role', 'role')}`")
    role = _role(named, columns)
    if role is None:
        raise RowError(f"{where}: unknown role `{str(named)[:40]}`")
    message: Message = {"role": role, "content": ""}
    calls = _first(turn, ("tool_calls", "function_call"))
    content = _first(turn, (columns.get("content", "content"), "value"))
    if isinstance(content, str):
        message["content"] = content
    elif isinstance(content, list | tuple):
        _read_parts(message, content, where)
    elif content is not None:
        raise RowError(f"{where}: `content` is {kind(content)}, it should be text")
    elif not calls:
        raise RowError(f"{where}: missing `{'value' if 'from' in turn else columns.get('content', 'content')}`")
    if calls:
        calls = structure_of(calls, f"{where}: `tool_calls`")
        message["tool_calls"] = [_call(call, where) for call in (calls if isinstance(calls, list | tuple) else [calls])]
    if role == "user" and not message["content"].strip():
        raise RowError(f"{where}: the user turn is empty")
    _read_extras(message, turn, where)
    return message


def _role(named: Any, columns: Mapping[str, str]) -> str | None:
    """The role a name means: one of the file's own names, else a usual one; None when it is neither."""
    if not isinstance(named, str):
        return None
    if columns:
        for name, own in columns.items():
            if own == named and name.startswith("role."):
                return name.removeprefix("role.")
    return ROLES.get(named.strip().lower())


def _first(turn: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of the named values that is there."""
    for name in names:
        if (value := turn.get(name)) is not None:
            return value
    return None


def _read_extras(message: Message, turn: Mapping[str, Any], where: str) -> None:
    """Reasoning, names, ids and the loss weight of a turn."""
    if len(turn) == 2:
        return
    reasoning = _first(turn, ("reasoning_content", "reasoning", "thinking"))
    if isinstance(reasoning, str) and reasoning:
        message["reasoning_content"] = reasoning
    for name in _KEPT:
        if isinstance(turn.get(name), str):
            message[name] = turn[name]
    weight = _first(turn, _WEIGHTS)
    if weight is None:
        return
    if not isinstance(weight, int | float) or not (weight == 0 or _LEAST <= weight <= _MOST):
        raise RowError(f"{where}: `weight` should be 0, or a number from {_LEAST} to {_MOST}")
    message["weight"] = float(weight)


def _read_parts(message: Message, parts: Sequence[Any], where: str) -> None:
    """Content in parts: text is joined, reasoning and tool calls go to their own places."""
    texts: list[str] = []
    reasoning: list[str] = []
    for part in parts:
        sort = part.get("type", "text") if isinstance(part, dict) else "text"
        value = _first(part, (sort if isinstance(sort, str) else "text", "text", "value")) if isinstance(part, dict) else part
        if sort == "text" and isinstance(value, str):
            texts.append(value)
        elif sort in ("reasoning", "thinking") and isinstance(value, str):
            reasoning.append(value)
        elif sort == "tool_call":
            call = structure_of(value, f"{where}: the tool call")
            message.setdefault("tool_calls", []).append(_call(call, where))
        else:
            raise RowError(f"{where}: a part of type `{str(sort)[:40]}`; only text is read")
    message["content"] = "".join(texts)
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call as templates expect it: the arguments are a mapping, not JSON in a string."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: the tool call has no `name`")
    arguments = structure_of(function.get("arguments", function.get("parameters")), f"{where}: the arguments of the tool call")
    made = {"type": "function", "function": {"name": function["name"], "arguments": {} if arguments is None else arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _add_call(messages: list[Message], turn: Message, where: str) -> None:
    """A turn that is a tool call: part of the assistant turn before it, if there is one, else an assistant turn of its own.

    Calls without an id get one (`call00001`, …), since some templates refuse to print a call that has none.
    """
    written = structure_of(turn["content"], f"{where}: the tool call")
    calls = [_call(call, where) for call in (written if isinstance(written, list) else [written])]
    made = sum(len(message.get("tool_calls", ())) for message in messages)
    calls = [{"id": f"call{made + i:05d}", **call} for i, call in enumerate(calls, 1)]
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).extend(calls)
        return
    _check_order(messages, "assistant", where)
    messages.append({**turn, "role": "assistant", "content": "", "tool_calls": calls})


def _link(result: Message, messages: Sequence[Message]) -> None:
    """Give a tool result the id and name of the call it answers, where the file does not say it."""
    answered = 0
    while messages and messages[-1 - answered]["role"] == "tool" and answered + 1 < len(messages):
        answered += 1
    calls = messages[-1 - answered].get("tool_calls", []) if messages else []
    if answered < len(calls):
        result.setdefault("name", calls[answered]["function"]["name"])
        if "id" in calls[answered]:
            result.setdefault("tool_call_id", calls[answered]["id"])


def _check_order(before: Sequence[Message], role: str, where: str) -> None:
    """Refuse a turn that cannot follow the messages before it."""
    last = before[-1]["role"] if before else None
    if role == "system":
        if last is not None:
            raise RowError(f"{where}: a system turn that is not the first")
    elif role == last and role != "tool":
        raise RowError(f"{where}: two {role} turns in a row")
    elif role == "user" and last == "tool":
        raise RowError(f"{where}: a user turn, but an assistant turn should follow the tool result")
    elif role == "assistant" and last in (None, "system"):
        raise RowError(f"{where}: the conversation begins with an assistant turn, it should begin with a user turn")
    elif role == "tool" and last not in ("assistant", "tool"):
        raise RowError(f"{where}: a tool result that follows no assistant turn")
