"""The card of a tuned model: a README that says what it was made of, how, and how well it went, from what the run has written down.

It names the base, each data set with its licence as the registry knows it, the stage and the method, the loss curve, the last measured
losses, results of an evaluation, the recipe as it was resolved, and the machine. What is not known is said to be unknown. Paths of the
machine that trained do not travel: of a local file only its name is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.data.registry import find as find_data
from luthier.data.sources import title_of
from luthier.errors import UserError
from luthier.export.merge import from_hub
from luthier.models.source import Source, find_source
from luthier.recipe.document import Dumper
from luthier.recipe.schema import Recipe
from luthier.recipe.schema import Source as DataSource
from luthier.runs.folder import RunFolder, find_run
from luthier.runs.plot import plot_loss
from luthier.runs.reader import RunReader
from luthier.version import __version__

CURVES = "loss.png"
"""The picture beside the card."""


def write_card(
    name: str | Path,
    folder: Path,
    *,
    licence: str | None = None,
    evaluation: Path | None = None,
    adapter: bool | None = None,
    checkpoint: int | None = None,
) -> Path:
    """Write `README.md`, and `loss.png` of a run, into a folder.

    Args:
        name: a run, an adapter folder or a model folder.
        folder: created if absent; a card that is there is replaced.
        licence: of the tuned model, as hubs call it (`apache-2.0`, …).
        evaluation: a JSON file with results.
        adapter: the card is of the adapter alone, not of a merged model; by default it is, unless a whole model lies in the folder.
        checkpoint: for a run, the step of a checkpoint.

    Returns:
        The card's file.

    Raises:
        UserError: no such model, or a file of results that is none.
    """
    source = find_source(name, checkpoint=checkpoint)
    run = find_run(name) if source.recipe is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    if adapter is None:
        adapter = source.adapter is not None and not (folder / "config.json").is_file()
    pictured = run is not None and plot_loss(RunReader(run).metrics(), folder / CURVES, run.name)
    text = card_text(source, run, licence=licence, results=_results(evaluation), adapter=adapter, pictured=pictured)
    file = folder / "README.md"
    file.write_text(text, encoding="utf-8")
    return file


def card_text(
    source: Source, run: RunFolder | None, *, licence: str | None, results: Mapping[str, Any], adapter: bool, pictured: bool
) -> str:
    """The card as Markdown with its YAML header.

    Args:
        source: the model.
        run: that made it, or None.
        licence: of the tuned model.
        results: of an evaluation: name → number.
        adapter: of the adapter alone.
        pictured: a loss curve lies beside it.
    """
    recipe = source.recipe
    parts = [_header(source, licence, adapter), f"# {source.name}", _summary(source, adapter)]
    if recipe is not None:
        parts += ["## Data", _data(recipe)]
    if run is not None:
        parts += ["## Training", *([f"![Loss over steps]({CURVES})"] if pictured else []), _losses(RunReader(run))]
    if results:
        parts += ["## Evaluation", _table(("measure", "value"), [(key, f"{value:g}") for key, value in results.items()])]
    parts += ["## Use", _use(adapter)]
    if recipe is not None:
        parts += ["## Recipe", f"```yaml\n{_recipe(recipe)}```"]
    if run is not None and run.environment.is_file():
        parts += ["## Environment", _environment(json.loads(run.environment.read_text(encoding="utf-8")))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(source: Source, licence: str | None, adapter: bool) -> str:
    recipe = source.recipe
    base = recipe.model.path if recipe is not None else source.base.path
    fields: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if licence:
        fields["license"] = licence
    if from_hub(base):
        fields |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    data = [hub for each in (recipe.data.train if recipe is not None else ()) if (hub := _hub_id(each))]
    if data:
        fields["datasets"] = sorted(set(data))
    fields["tags"] = ["luthier", *([recipe.stage.type, recipe.method.type] if recipe is not None else [])]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _summary(source: Source, adapter: bool) -> str:
    recipe = source.recipe
    base = recipe.model.path if recipe is not None else source.base.path
    shown = base if from_hub(base) else Path(base).name
    what = "An adapter for" if adapter else "A tuned copy of"
    text = f"{what} `{shown}`, made with Luthier {__version__}"
    if recipe is None:
        return text + "."
    return f"{text}: stage `{recipe.stage.type}`, method `{recipe.method.type}`."


def _data(recipe: Recipe) -> str:
    rows = []
    for each in recipe.data.train:
        licence = _licence(each)
        limit = f"the first {each.max_examples} examples" if each.max_examples else "all examples"
        rows.append((_name(each), limit, f"{each.weight:g}", licence))
    return _table(("source", "of it", "weight", "licence"), rows)


def _licence(source: DataSource) -> str:
    if not source.name:
        return "unknown"
    try:
        return find_data(source.name).licence
    except UserError:
        return "unknown"


def _hub_id(source: DataSource) -> str:
    """The id of a data set on a hub, or an empty text."""
    if source.name:
        try:
            return find_data(source.name).huggingface
        except UserError:
            return ""
    return source.path if from_hub(source.path) else ""


def _name(source: DataSource) -> str:
    title = title_of(source)
    return title if source.name or _hub_id(source) or "://" in title else Path(title).name


def _losses(reader: RunReader) -> str:
    metrics = reader.metrics()
    steps = [record for record in metrics if record.get("loss") is not None]
    measured = [record for record in metrics if record.get("eval_loss") is not None]
    rows = []
    if steps:
        rows += [("steps", f"{steps[-1]['step']}"), ("training loss, last step", f"{steps[-1]['loss']:.4f}")]
        if tokens := sum(int(record.get("tokens") or 0) for record in steps):
            rows.append(("tokens", f"{tokens:,}"))
    if measured:
        best = min(measured, key=lambda record: float(record["eval_loss"]))
        rows += [
            ("validation loss, last", f"{measured[-1]['eval_loss']:.4f}"),
            (f"validation loss, best (step {best['step']})", f"{best['eval_loss']:.4f}"),
        ]
    return _table(("measure", "value"), rows) if rows else ""


def _use(adapter: bool) -> str:
    if adapter:
        lines = "from peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM"
    else:
        lines = "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM"
    return f'```python\n{lines}.from_pretrained("path/or/id")\n```'


def _recipe(recipe: Recipe) -> str:
    given = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(_without_places(given), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _without_places(value: Any) -> Any:
    """The value with absolute paths cut down to their last part."""
    if isinstance(value, dict):
        return {key: _without_places(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "../", "./")) else value


def _environment(found: Mapping[str, Any]) -> str:
    gpus = ", ".join(str(gpu.get("name")) for gpu in found.get("gpus") or ()) or "none"
    rows = [
        ("Luthier", found.get("luthier")),
        ("Python", found.get("python")),
        ("processor", found.get("processor")),
        ("GPU", gpus),
    ]
    rows += [
        (name, found["packages"][name]) for name in ("torch", "transformers", "tokenizers") if name in found.get("packages", {})
    ]
    return _table(("part", "is"), [(name, str(value)) for name, value in rows if value])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _results(file: Path | None) -> dict[str, float]:
    """The numbers in a JSON file: their path in it → value.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    if file is None:
        return {}
    try:
        found = dict(_numbers(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise UserError(f"no results can be read ({error})", where=str(file), hint="Give a JSON file.") from None
    if not found:
        raise UserError("there are no numbers in it", where=str(file))
    return found


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, f"{path} {key}".strip())
