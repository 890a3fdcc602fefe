"""Which layers of a model get an adapter, and of what rank: the settings of one adapter, in PEFT's terms.

PEFT's `adapter_config.json` is the common tongue of adapters (vLLM, llama.cpp and transformers read it), so the rules by which it
names layers are followed to the letter:

* `target_modules` is a list of names (a module matches if its dotted name equals one or ends in `.name`), a regular expression for
  the whole dotted name, or `all-linear`: every linear layer but the output head and routers;
* `target_parameters` names bare parameters, as fused experts are (Mixtral and others since transformers 5), in the same way. In a
  recipe `target` names both, and `all-linear` means both;
* `layers_to_transform` keeps only the given layer numbers;
* `rank_pattern` and `alpha_pattern` give other values to layers whose name ends in a match of their key;
* modules in `modules_to_save` are trained whole and get no adapter;
* `trainable_token_indices` names rows of the embeddings (and of the head) that are trained, see `tokens`.

Fields beyond these change what an adapter computes. One that is set to something is refused by name, for an adapter that is only
nearly understood gives a model that is only nearly right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from luthier.errors import UserError
from luthier.models.adapters.adalora import Schedule
from luthier.models.mixture import PIECES
from luthier.recipe.schema import AdaLoRA, LoRA

LORA, ADALORA = "LORA", "ADALORA"
LORA_RANK = 8
"""What PEFT wants to read as `r` of an AdaLoRA adapter, where it means nothing."""
ALL_LINEAR = "all-linear"
EMBEDDINGS = ""
"""What `AdapterConfig.tokens` calls the input embeddings where a file does not say their name."""
_Value = TypeVar("_Value", int, float)

_INFORMATIVE = {
    "peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping",
    "fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "runtime_config", "bias",
    "init_lora_weights",
}  # fmt: skip
_ADALORA = {"init_r", "target_r", "total_step", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight"}
"""Fields of adapter_config.json that say nothing of the computation of a loaded adapter (or are checked apart)."""

_HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that touch the adapter alone. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights too."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The settings of one LoRA adapter.

    Attributes are named as in the recipe; `_FIELDS` maps them to PEFT's names. `target` is a tuple of names, a regular expression, or
    `all-linear`; `layers` limits names (not an expression) to these layer numbers. `tokens` maps the end of a module's name (the empty
    one is the embeddings) to the rows of it that are trained. `adalora` are the fields that AdaLoRA adds, by PEFT's names; `rank` is then
    the rank that it began with, and `rank_pattern` has the layers with another. `parameters` are names of bare parameters; with `experts`
    the target means those of fused experts as well.
    """

    rank: int = 8
    alpha: float = 8
    dropout: float = 0.0
    target: str | tuple[str, ...] = ALL_LINEAR
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    exclude: str | tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    adalora: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    experts: bool = False

    @classmethod
    def from_method(cls, method: LoRA | AdaLoRA) -> AdapterConfig:
        """The recipe's `method` section as adapter settings."""
        if isinstance(method, AdaLoRA):
            return cls(
                rank=method.start_rank,
                alpha=method.alpha,
                dropout=method.dropout,
                target=method.target,
                modules_to_save=method.modules_to_save,
                exclude=method.exclude,
                adalora=Schedule(1, 0, 0, 1, method.rank, method.start_rank, method.orthogonality).to_peft(),
            )
        return cls(
            rank=method.rank,
            alpha=method.alpha,
            dropout=method.dropout,
            target=method.target,
            rslora=method.rslora,
            dora=method.dora,
            modules_to_save=method.modules_to_save,
            rank_pattern=method.rank_pattern,
            alpha_pattern=method.alpha_pattern,
            layers=method.layers,
            exclude=method.exclude,
            experts=no_form_for_experts(method) is None,
        )

    @classmethod
    def from_peft(cls, value: Mapping[str, Any], where: str) -> AdapterConfig:
        """Read the content of an `adapter_config.json`.

        Raises:
            UserError: another kind of adapter, or a field that is set and not understood.
        """
        if value.get("peft_type") not in (LORA, ADALORA):
            raise UserError(
                f"an adapter of type {value.get('peft_type')!r}; Luthier reads LoRA adapters",
                where=where,
                hint="Merge it into its base with PEFT first.",
            )
        adalora = {key: value[key] for key in _ADALORA if key in value} if value["peft_type"] == ADALORA else {}
        if adalora:
            left = {name.removesuffix(".lora_E"): sum(kept) for name, kept in (value.get("rank_pattern") or {}).items()}
            value = {**value, "r": value["init_r"], "rank_pattern": left}
        _refuse_unknown(value, where)
        known = {ours: value[theirs] for ours, theirs in _FIELDS.items() if value.get(theirs) not in (None, [], {}, "")}
        for name in ("target", "exclude"):
            if isinstance(known.get(name), list):
                known[name] = tuple(known[name])
        for name in ("modules_to_save", "layers", "layers_pattern", "parameters"):
            if name in known:
                known[name] = tuple(known[name]) if isinstance(known[name], list) else (known[name],)
        if isinstance(known.get("target"), str) and known["target"].lower() == ALL_LINEAR:
            known["target"] = ALL_LINEAR
        if isinstance(known.get("tokens"), list):
            known["tokens"] = {EMBEDDINGS: known["tokens"]}
        known["tokens"] = {module: tuple(rows) for module, rows in known.get("tokens", {}).items()}
        if "target" not in known:
            if "parameters" not in known:
                raise UserError("`target_modules` is missing", where=where)
            known["target"] = ()
        return cls(**known, adalora=adalora)

    def doubled(self) -> AdapterConfig:
        """The same scaling with twice the rank in every layer: alpha follows, by the rule of `rslora` too."""
        stretch = math.sqrt(2) if self.rslora else 2.0
        return replace(
            self,
            rank=2 * self.rank,
            alpha=self.alpha * stretch,
            rank_pattern={name: 2 * rank for name, rank in self.rank_pattern.items()},
            alpha_pattern={name: alpha * stretch for name, alpha in self.alpha_pattern.items()},
        )

    def to_peft(self, *, base: str, transposed: bool) -> dict[str, Any]:
        """The content of an `adapter_config.json` that plain PEFT reads.

        Args:
            base: path or hub id of the base model.
            transposed: whether the adapted layers store [in, out] (GPT-2's Conv1D).
        """
        fields = {theirs: asdict(self)[ours] for ours, theirs in _FIELDS.items()}
        if self.adalora:
            fields |= {"r": LORA_RANK, "rank_pattern": self._kept() or None, "peft_type": ADALORA, **self.adalora}
        optional = (
            "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules", "trainable_token_indices", "target_parameters",
        )  # fmt: skip
        return {
            "peft_type": LORA,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": transposed,
            "inference_mode": True,
            "init_lora_weights": True,
        } | {key: (value or None) if key in optional else value for key, value in fields.items()}

    def _kept(self) -> dict[str, list[bool]]:
        """AdaLoRA's way to say that a layer has fewer ranks than it began with: which of them are left."""
        return {f"{name}.lora_E": [place < rank for place in range(self.rank)] for name, rank in self.rank_pattern.items()}

    def rank_and_alpha(self, name: str) -> tuple[int, float]:
        """Rank and alpha of the layer or parameter with this dotted name."""
        weight = f"{name}.weight"  # what PEFT calls a layer that is named as a parameter
        rank = _pattern(self.rank_pattern, name, _pattern(self.rank_pattern, weight, self.rank))
        return rank, _pattern(self.alpha_pattern, name, _pattern(self.alpha_pattern, weight, self.alpha))

    def selects(self, name: str) -> bool:
        """Whether the rules name this module (for `all-linear`, only whether they leave it in)."""
        if self.names_weight_of(name):
            return True
        return self._leaves_in((name,)) and (self.target == ALL_LINEAR or _named(self.target, name))

    def names_weight_of(self, name: str) -> bool:
        """Whether the rules name this module by its weight, as a parameter."""
        return _named(self.parameters, f"{name}.weight")

    def selects_parameter(self, name: str) -> bool:
        """Whether the rules name this fused parameter of experts."""
        if _named(self.parameters, name):
            return True
        return self.experts and self._leaves_in(_meanings(name)) and (self.target == ALL_LINEAR or self.means(self.target, name))

    def means(self, rule: str | tuple[str, ...], name: str) -> bool:
        """Whether a rule names this fused parameter of experts, by any of its names."""
        return any(_named(rule, each) for each in _meanings(name))

    def _leaves_in(self, names: tuple[str, ...]) -> bool:
        """Whether what has these names is neither excluded, nor trained whole, nor in another layer."""
        if self.exclude and any(_named(self.exclude, name) for name in names):
            return False
        if any(re.match(rf"(^|.*\.){module}($|\..*)", names[0]) for module in self.modules_to_save):
            return False
        return not self.layers or self._layer(names[0]) in self.layers

    def _layer(self, name: str) -> int | None:
        """The layer number in a dotted name."""
        for pattern in self.layers_pattern:
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
                return int(match[1])
        match = None if self.layers_pattern else re.match(r".*?\.[^.]*\.(\d+)\.", name)
        return int(match[1]) if match else None


_FIELDS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target": "target_modules",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "modules_to_save": "modules_to_save",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "exclude": "exclude_modules",
    "tokens": "trainable_token_indices",
    "parameters": "target_parameters",
}
"""Our name → PEFT's name of each field that changes what an adapter computes."""


def _refuse_unknown(value: Mapping[str, Any], where: str) -> None:
    known = _INFORMATIVE | _ADALORA | set(_FIELDS.values())
    active = [key for key, content in value.items() if key not in known and content not in (None, False, [], {}, "")]
    if value.get("bias", "none") != "none":
        active.append("bias")
    if value.get("init_lora_weights", True) not in _HARMLESS_INITS:
        active.append("init_lora_weights")
    if active:
        raise UserError(
            f"the adapter uses {', '.join(f'`{key}: {value[key]}`' for key in active)}, which Luthier does not read",
            where=where,
            hint="Merge it into its base with PEFT first.",
        )


def no_form_for_experts(method: LoRA | AdaLoRA) -> str | None:
    """What keeps a method from adapting fused experts, in a word; None where nothing does."""
    if isinstance(method, AdaLoRA):
        return "AdaLoRA"
    if method.dora:
        return "DoRA"
    return None if method.init in ("default", "loftq") else f"`init: {method.init}`"


def _meanings(name: str) -> tuple[str, ...]:
    """All names of a fused parameter: its own, its module's, and those its parts had."""
    module, _, part = name.rpartition(".")
    return (name, module, *(f"{module}.{former}" for formers in PIECES.get(part, ()) for former in formers))


def _named(rule: str | tuple[str, ...], name: str) -> bool:
    if isinstance(rule, str):
        return re.fullmatch(rule, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in rule)


def _pattern(patterns: Mapping[str, _Value], name: str, default: _Value) -> _Value:
    """The value of the first key that matches the end of the name."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
