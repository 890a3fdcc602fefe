"""Recipes of several stages that feed each other: `pt → sft → rm → ppo` in one file.

    name: rlhf
    model: tiny                     what stands here holds for every stage
    method: lora
    stages:
      - stage: sft
        data: {train: talk.json}
      - stage: rm
        data: {train: pairs.json}
      - stage: {type: ppo, rewards: [{type: model, path: "stage:rm"}]}
        from: sft
        data: {train: questions.json}

Each entry of `stages` is a recipe of its own laid over what the file says for all of them: a section that is a mapping is completed key
by key, unless it names another `type`. Two keys belong to the entry alone: `name`, by default the type of its stage, and `from`, the
stage whose product it starts with: by default the one before, `base` for the recipe's model. A text `stage:NAME` stands for the run of
that stage.

A stage continues the adapter of the one before where both train the same kind of adapter on the same kind of model; else the product is
merged into an ordinary folder first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import UserError, did_you_mean
from luthier.recipe.document import Dumper, Key
from luthier.recipe.explain import Places
from luthier.recipe.load import Override, lay_over, read_values, validated
from luthier.recipe.paths import absolute_paths
from luthier.recipe.schema import SCORING, Recipe

STAGES, BASE, RUN_OF = "stages", "base", "stage:"


@dataclass(frozen=True)
class Part:
    """One stage of a pipeline.

    Args:
        recipe: the whole recipe of its run, products of other stages named by their paths.
        before: the stage whose product it starts with; None is the base model.
        merges: that product is merged first.
    """

    recipe: Recipe
    before: str | None
    merges: bool

    @property
    def name(self) -> str:
        """The name of its run."""
        assert self.recipe.name
        return self.recipe.name


@dataclass(frozen=True)
class Pipeline:
    """Stages in the order in which they are trained.

    Args:
        folder: holds the runs of the stages.
        parts: the stages.
        named: somebody chose the folder's name.
    """

    folder: Path
    parts: tuple[Part, ...]
    named: bool = True

    def run(self, name: str) -> Path:
        """The folder of a stage's run."""
        return self.folder / name

    def merged(self, name: str) -> Path:
        """Where the product of a stage lies once it is merged."""
        return self.run(name) / "merged"


def is_pipeline(recipe: object) -> bool:
    """Whether a recipe, given as a file, a shipped name or a mapping, lists stages.

    Raises:
        UserError: the file cannot be read.
    """
    if isinstance(recipe, str | Path):
        return STAGES in read_values(recipe).values
    return isinstance(recipe, Mapping) and STAGES in recipe


def load_pipeline(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), name: str | None = None, output: Path | None = None
) -> Pipeline:
    """Read a recipe of several stages.

    Args:
        recipe: a file, the name of a shipped recipe, or a mapping.
        overrides: `key=value` for all stages, or `stages.NAME.key=value` for one.
        name: of the pipeline's folder, in place of the recipe's.
        output: holds that folder, in place of the recipe's.

    Raises:
        UserError: anything is wrong with it; one line for each mistake.
    """
    read = read_values(recipe) if isinstance(recipe, str | Path) else None
    values: dict[str, Any] = dict(read.values if read else recipe)  # type: ignore[arg-type]
    entries = _entries(values.pop(STAGES), read.file if read else None)
    names = [_name(entry) for entry in entries]
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise UserError(f"two stages are called `{twice}`", where=STAGES, hint="Give one of them a `name`.")
    base = read.base if read else Path.cwd()
    shared = absolute_paths(values, base)
    entries = [absolute_paths(entry, base) for entry in entries]
    typed: list[dict[Key, str]] = [{} for _ in entries]
    for override in map(Override.parse, overrides):
        if override.key[0] == STAGES:
            number = _number(override, names)
            inner = override.below(2)
            entries[number] = lay_over(entries[number], inner)
            typed[number][inner.key] = override.text
        else:
            inner = override.below(0)
            shared = lay_over(shared, inner)
            for each in typed:
                each[inner.key] = override.text
    written, place = shared.pop("name", None), shared.pop("output", "runs")
    folder = (output or Path(place)) / (name or written or (read.stem if read else "pipeline"))
    places = [_places(read.places, number, keys) if read else Places() for number, keys in enumerate(typed)]
    return Pipeline(folder, tuple(_parts(shared, entries, names, folder, places)), bool(name or written))


def dump_pipeline(pipeline: Pipeline) -> str:
    """The pipeline as YAML, every stage written out with every field."""
    entries = [
        {**part.recipe.model_dump(mode="json", exclude={"output"}), "from": part.before or BASE} for part in pipeline.parts
    ]
    values = {"name": pipeline.folder.name, "output": str(pipeline.folder.parent), STAGES: entries}
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _entries(value: Any, file: str | None) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise UserError("is a list of recipes, one for each stage", where=f"{file}: {STAGES}" if file else STAGES)
    return value


def _name(entry: Mapping[str, Any]) -> str:
    stage = entry.get("stage", "sft")
    return str(entry.get("name") or (stage.get("type", "sft") if isinstance(stage, dict) else stage))


def _number(override: Override, names: Sequence[str]) -> int:
    """The stage that an override is for, by its name or its number."""
    which = override.key[1] if len(override.key) > 2 else None
    if isinstance(which, int) and which < len(names):
        return which
    if which not in names:
        raise UserError(f"there is no stage `{which}`", where=override.text, hint=did_you_mean(str(which), names))
    return names.index(str(which))


def _places(places: Places, number: int, typed: Mapping[Key, str]) -> Places:
    """Where the values of one stage stand: in its own entry, or in what holds for all."""
    own = {key[2:]: line for key, line in places.lines.items() if key[:2] == (STAGES, number)}
    return Places(places.file, {**places.lines, **own}, typed)


def _parts(
    shared: Mapping[str, Any], entries: Sequence[dict[str, Any]], names: Sequence[str], folder: Path, places: Sequence[Places]
) -> list[Part]:
    parts: dict[str, Part] = {}
    for entry, name, place in zip(entries, names, places, strict=True):
        own = {key: value for key, value in entry.items() if key not in ("name", "from")}
        values = _with_runs(_laid_over(shared, own), folder, names)
        before = str(entry.get("from", next(reversed(parts), BASE)))
        if before != BASE and before not in parts:
            hint = did_you_mean(before, [BASE, *parts])
            raise UserError(f"`from: {before}` is no stage before this one", where=place.where(("from",)) or "from", hint=hint)
        recipe = validated({**values, "name": name, "output": str(folder)}, place)
        parts[name] = _part(recipe, parts.get(before), before, folder)
    return list(parts.values())


def _part(recipe: Recipe, before: Part | None, name: str, folder: Path) -> Part:
    """The stage with the product of the one before in the place of its model."""
    if before is None:
        return Part(recipe, None, merges=False)
    run = (folder / name).absolute()
    trained = before.recipe.method.type
    if trained in ("full", "freeze", "llama_pro"):
        return Part(_on(recipe, path=str(run / "final"), adapter=None), name, merges=False)
    goes_on = trained == recipe.method.type and before.recipe.stage.type not in SCORING and recipe.stage.type not in SCORING
    if goes_on:
        base = before.recipe.model
        return Part(_on(recipe, path=base.path, adapter=str(run / "final")), name, merges=False)
    return Part(_on(recipe, path=str(run / "merged"), adapter=None), name, merges=True)


def _on(recipe: Recipe, **model: Any) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={**model, "revision": None})})


def _laid_over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says over what holds for all: mappings key by key, unless they are of another type."""
    result = dict(shared)
    for key, value in own.items():
        before = result.get(key)
        same = (
            isinstance(before, dict) and isinstance(value, dict) and value.get("type", before.get("type")) == before.get("type")
        )
        result[key] = _laid_over(before, value) if same else value  # type: ignore[arg-type]
    return result


def _with_runs(value: Any, folder: Path, names: Sequence[str]) -> Any:
    """The value with `stage:NAME` replaced by the folder of that stage's run."""
    if isinstance(value, dict):
        return {key: _with_runs(child, folder, names) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_with_runs(child, folder, names) for child in value]
    if not isinstance(value, str) or not value.startswith(RUN_OF):
        return value
    if (name := value.removeprefix(RUN_OF)) not in names:
        raise UserError(f"`{value}`: there is no such stage", where=STAGES, hint=did_you_mean(name, names))
    return str((folder / name).absolute())
