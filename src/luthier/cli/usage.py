"""A command line that cannot be parsed, as one line that says what to type instead.

The library behind the commands knows what is wrong with a word, and not what was meant by it: a question behind `luthier chat NAME` is "an
unexpected extra argument". Its exceptions have no public names, so they are told apart by what they carry.
"""

from __future__ import annotations

import re
from typing import Any

from luthier.errors import UserError, did_you_mean, nearest

_COMMAND = re.compile(r"No such command '(.+?)'\.")
_EXTRA = re.compile(r"unexpected extra argument\S* \((.*)\)$", re.DOTALL)
_VALUE = re.compile(r"Invalid value(?: for (?P<where>.+?))?: (?P<what>.*)", re.DOTALL)
_MISSING = re.compile(r"Missing \w+ '(?P<name>[^']+)'")
_MORE = "`-h` tells more."


def is_usage_error(error: Exception) -> bool:
    """Whether the library raised it at a command line."""
    return hasattr(error, "format_message") and hasattr(error, "ctx")


def told(error: Any) -> str:
    """What is wrong with a command line, and what to do; the help where nothing was typed behind a group of commands."""
    return error.format_message() if type(error).__name__ == "NoArgsIsHelpError" else f"error: {_mistake(error)}"


def _mistake(error: Any) -> UserError:
    context, message = error.ctx, error.format_message()
    where = context.command_path if context is not None else None
    if option := getattr(error, "option_name", None) if type(error).__name__ == "NoSuchOption" else None:
        best = nearest(option, _options(context))
        return UserError("no such option", where=option, hint=f"Did you mean `{best}`?" if best else _MORE)
    if found := _COMMAND.search(message):
        known = getattr(context.command, "commands", {})
        return UserError(f"no such command `{found[1]}`", where=where, hint=did_you_mean(found[1], known))
    if found := _EXTRA.search(message):
        return UserError(f"does not take `{found[1]}`", where=where, hint=_for_extra(context, found[1]))
    if found := _MISSING.match(message):
        name = found["name"]
        hint = f"Give it as {name} {_metavar(context, name)}." if name.startswith("-") else f"Write `{_usage(context)}`; {_MORE}"
        return UserError(f"`{name}` is missing", where=where, hint=hint)
    if found := _VALUE.match(message):
        return UserError(found["what"].rstrip("."), where=(found["where"] or where or "").strip("'"), hint=_MORE)
    return UserError(message.rstrip("."), where=where, hint=_MORE)


def _options(context: Any) -> list[str]:
    return [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]


def _for_extra(context: Any, text: str) -> str:
    """Of a command that can be asked something, how; of any other, what it takes."""
    if "--prompt" in _options(context):
        return f'A question is asked with --prompt "{text}".'
    return f"Write `{_usage(context)}`; {_MORE}"


def _metavar(context: Any, name: str) -> str:
    found = next((parameter for parameter in context.command.params if name in parameter.opts), None)
    return getattr(found, "metavar", None) or "VALUE"


def _usage(context: Any) -> str:
    return re.sub(r"[{}]", "", " ".join(str(context.get_usage()).split())).removeprefix("Usage: ")
