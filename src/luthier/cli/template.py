"""`luthier template`: the chat formats, what they write, and whether a model will be asked as it was taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.chat import ChatTemplate
    from luthier.data.tokenizer import Tokenizer

template_app = typer.Typer(help="Chat templates: how conversations become text.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A family, as `luthier template list` prints it.")]
Which = Annotated[str, typer.Option("--template", metavar="NAME|FILE.jinja", help="A family, or a template file.")]
ModelName = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="A model folder, a hub id, a run, or `tiny`.")]

NOTHING = {"bos_token": "<s>", "eos_token": "</s>"}
"""What stands for the ends of a sequence where no model is named."""


@template_app.callback()
def template() -> None:
    """Chat templates: how conversations become text."""


@template_app.command("list")
def list_templates() -> None:
    """Names of the families, how they call functions, what they do with thoughts, and what they are for."""
    from luthier.chat import families

    rows = [("name", "functions", "thoughts", "about")]
    for family in families().values():
        also = f" Also: {', '.join(family.aliases)}." if family.aliases else ""
        thoughts = "-" if family.thinking == "none" else family.thinking
        rows.append((family.name, family.tools or "-", thoughts, family.about + also))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))


@template_app.command("show")
def show_template(name: Name) -> None:
    """Print what is known of a family, and its Jinja source."""
    from luthier.chat.families import by_any_name
    from luthier.errors import UserError, did_you_mean

    family = by_any_name().get(name)
    if family is None:
        raise UserError(f"unknown template `{name}`", hint=did_you_mean(name, list(by_any_name())))
    print(f"{{# {family.name}: {family.about}")
    for key, value in (
        ("other names", ", ".join(family.aliases)),
        ("roles", ", ".join(family.roles)),
        ("end of turn", family.end_of_turn),
        ("generation stops at", "  ".join(family.stop)),
        ("functions", family.tools or "none"),
        ("thoughts", family.thinking),
        ("default system message", family.system),
    ):
        if value:
            print(f"   {key}: {value}")
    print("#}")
    print(family.source, end="")


@template_app.command()
def render(
    messages: Annotated[
        Path, typer.Option(metavar="FILE.json", help="A list of messages, or a mapping with `messages` and `tools`.")
    ],
    template: Which = "auto",
    tools: Annotated[Path | None, typer.Option(metavar="FILE.json", help="A list of functions as JSON schemas.")] = None,
    no_generation_prompt: Annotated[bool, typer.Option("--no-generation-prompt", help="End after the last message.")] = False,
    model: ModelName = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A variable of the template, e.g. enable_thinking=false."),
    ] = None,
) -> None:
    """Print the text that a template makes of messages, up to where the model goes on writing."""
    given = _json(messages)
    known = _json(tools) if tools else (given.get("tools") if isinstance(given, dict) else None)
    said = given.get("messages") if isinstance(given, dict) else given
    chosen = _resolve(template, model)
    text = chosen.render(_messages(said, messages), known, not no_generation_prompt, **_variables(variables or []))
    print(text, end="" if text.endswith("\n") else "\n")


@template_app.command()
def check(
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A model folder, a hub id, a run, or `tiny`.")],
    template: Which = "auto",
) -> None:
    """Say whether training with a template and the model's own serving template agree, token by token.

    Exit code 0: they agree; 1: they differ.
    """
    from luthier.chat import ChatTemplate
    from luthier.chat.agreement import compare
    from luthier.errors import UserError

    tokenizer, training = _training(model, template)
    if tokenizer.chat_template is None:
        raise UserError("it has no chat template of its own to compare with", where=model)
    serving = ChatTemplate("the model's own", tokenizer.chat_template, tokenizer.variables)
    findings = compare(
        training, serving, lambda text: tokenizer.encode(text).ids.tolist(), lambda ids: tokenizer.decode(ids, skip_special=False)
    )
    print(f"learnt with {training.name}, served with the model's own template")
    for finding in findings:
        print(f"  {finding.line()}")
    if not all(finding.agree for finding in findings):
        raise typer.Exit(1)


def _training(model: str, template: str) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer that a model came with, and the template that is learnt with: of a run, the one that it learnt with."""
    from luthier.chat import resolve
    from luthier.data.tokenizer import load_tokenizer
    from luthier.models.catalog import template_of
    from luthier.models.source import find_source, tokenizer_folder

    source = find_source(model)
    recipe = source.recipe
    tokenizer = load_tokenizer(tokenizer_folder(recipe.model) if recipe else source.tokenizer)
    fallback = template_of(recipe.model.path if recipe else source.base.path)
    if recipe and template == "auto":
        own, data = tokenizer.chat_template, recipe.data
        return tokenizer, resolve(data.template, own, tokenizer.variables, data.thinking, fallback=fallback)
    return tokenizer, resolve(template, tokenizer.chat_template, tokenizer.variables, fallback=fallback)


def _resolve(template: str, model: str | None) -> ChatTemplate:
    """The template by itself, or with the tokens and the template of a model."""
    from luthier.chat import resolve
    from luthier.errors import UserError

    if model:
        return _training(model, template)[1]
    if template == "auto":
        raise UserError(
            "neither a template nor a model is named", where="--template", hint="Say --template qwen3, or --model tiny."
        )
    return resolve(template, None, NOTHING)


def _json(path: Path) -> Any:
    from luthier.errors import UserError

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"is no JSON ({error})", where=f"{path}:{line}" if line else str(path)) from error


def _messages(value: Any, path: Path) -> list[dict[str, Any]]:
    from luthier.errors import UserError

    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value)
    ):
        hint = 'Write [{"role": "user", "content": "…"}].'
        raise UserError("should hold a list of messages, each with a `role`", where=str(path), hint=hint)
    return value


def _variables(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; values are YAML, so that `false` is not a text."""
    import yaml

    from luthier.errors import UserError

    made: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"`{pair}` should be NAME=VALUE", where="--set")
        made[name] = yaml.safe_load(value)
    return made
