r"""Rotary positions beyond the length that a model was trained on.

A rotary embedding turns pair i of a head by the angle p θ_i at position p, θ_i = base^(-2i/d). Positions that were never seen turn to
angles that were never seen; scaling brings them back into the known range. With factor s and original length L:

| type | θ'_i | source |
|---|---|---|
| `linear` | θ_i / s | Chen et al. 2023, arXiv:2306.15595 |
| `dynamic` | base grows with the text: base (s n/L - s + 1)^(d/(d-2)) at length n > L, as before up to L | NTK-aware scaling |
| `yarn` | θ_i for fast pairs, θ_i / s for slow ones, a ramp between; attention times (0.1 ln s + 1)² | Peng et al. 2023, arXiv:2309.00071 |
| `llama3` | the same idea with a smooth step over wavelengths | Llama 3.1 |
| `longrope` | θ_i / f_i, with f_i from two lists: up to L, and beyond | Ding et al. 2024, arXiv:2402.13753 |

transformers computes all of them from a config; here the config is written. It is saved with the model, so the trained model has the
same positions wherever it is loaded. An adapter's folder has no config: whoever serves it on the base model has to scale that, too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from luthier.errors import UserError
from luthier.recipe.schema import RopeScaling

_WITH_ORIGINAL = ("yarn", "llama3", "longrope")
"""Types whose parameters name the original length; for the others it is nowhere, or the config's own limit."""
_WHERE = "model.rope_scaling"


def scale_rotary(config: PreTrainedConfig, scaling: RopeScaling) -> None:
    """Write a scaling into a model's config, in place; the model has to be built from it afterwards.

    Where layers differ in their positions (Gemma 3), those with full attention are scaled: the others never look far.

    Raises:
        UserError: the model has no rotary positions, or `longrope` has another number of factors than pairs.
    """
    config = config.get_text_config()
    held: Mapping[str, Any] | None = getattr(config, "rope_parameters", None)
    if not held:
        raise UserError(f"`{config.model_type}` has no rotary positions", where=_WHERE, hint="Leave it out.")
    layered = isinstance(held.get("full_attention"), dict)
    before = held["full_attention"] if layered else held
    original = original_length(scaling, before, config.max_position_embeddings)
    after = _parameters(config, scaling, before, original)
    config.rope_parameters = {**held, "full_attention": after} if layered else after
    # `dynamic` takes the config's limit for the original length, so there it stays; `reach` knows.
    config.max_position_embeddings = original if scaling.type == "dynamic" else round(original * scaling.factor)
    if hasattr(config, "original_max_position_embeddings"):  # Phi-3 holds it here, and reads it here first
        config.original_max_position_embeddings = original


def original_length(scaling: RopeScaling, parameters: Mapping[str, Any], limit: int) -> int:
    """The length that a scaling starts from: the recipe's, else that of the scaling which the model has, else its limit."""
    return scaling.original_length or parameters.get("original_max_position_embeddings") or limit


def reach(content: Mapping[str, Any], scaling: RopeScaling | None) -> int | None:
    """The longest text that a model takes, None where its config names no limit.

    Args:
        content: the content of `config.json`; older files name the scaling `rope_scaling`.
        scaling: what a recipe adds.
    """
    limit = content.get("max_position_embeddings") or content.get("n_positions")
    if not isinstance(limit, int):
        return None
    parameters = content.get("rope_parameters") or content.get("rope_scaling") or {}
    parameters = {**content, **parameters.get("full_attention", parameters)}  # Phi-3 has the original length beside them
    if scaling is not None:
        return round(original_length(scaling, parameters, limit) * scaling.factor)
    if parameters.get("rope_type", parameters.get("type")) == "dynamic":
        return round(limit * float(parameters.get("factor", 1)))
    return limit


def steady_length(config: PreTrainedConfig) -> float:
    """Length up to which positions do not depend on how long a text is; infinite for most models.

    With `dynamic` and `longrope` the longest text of a pass decides how all of its positions are turned.
    """
    config = config.get_text_config()
    held = getattr(config, "rope_parameters", None) or {}
    kinds = [held, *(value for value in held.values() if isinstance(value, dict))]
    limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    limits += [config.max_position_embeddings for kind in kinds if kind.get("rope_type") == "dynamic"]
    return min(limits, default=math.inf)


def growing(model: nn.Module) -> list[nn.Module]:
    """The rotary modules whose frequencies follow the longest text seen (`dynamic`)."""
    return [module for module in model.modules() if "dynamic" in _types(module) and hasattr(module, "max_seq_len_cached")]


def forget_lengths(modules: Sequence[nn.Module]) -> None:
    """Take back what such modules have kept of an earlier, longer text, so that a text's numbers depend on that text alone."""
    for module in modules:
        for prefix in [f"{layer}_" for layer in module.rope_type] if isinstance(module.rope_type, dict) else [""]:
            own = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq").to(own.device))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _types(module: nn.Module) -> Collection[str]:
    """The kinds of rotary positions of a module: one, or one for each kind of layer."""
    kinds = getattr(module, "rope_type", ())
    return kinds.values() if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else ()


def _parameters(config: PreTrainedConfig, scaling: RopeScaling, before: Mapping[str, Any], original: int) -> dict[str, Any]:
    """The new parameters: base and share of rotated dimensions as before, settings of the same type as a start."""
    same = before.get("rope_type") == scaling.type
    kept = before if same else {key: before[key] for key in ("rope_theta", "partial_rotary_factor") if key in before}
    given = {key: value for key, value in scaling.model_dump().items() if value not in (None, ())}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    given.pop("type")
    given.pop("original_length", None)
    made = {**kept, "rope_type": scaling.type, **given}
    if scaling.type in _WITH_ORIGINAL:
        made["original_max_position_embeddings"] = original
    if scaling.type == "llama3":
        made = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **made}
    if scaling.type == "longrope":
        _check_pairs(config, made)
    return made


def _check_pairs(config: PreTrainedConfig, made: dict[str, Any]) -> None:
    """Fill in the short factors, and refuse lists of another length than a head has pairs."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(size * made.get("partial_rotary_factor", 1.0)) // 2
    made.setdefault("short_factor", [1.0] * pairs)
    for name in ("short_factor", "long_factor"):
        if len(made[name]) != pairs:
            raise UserError(f"{len(made[name])} factors, and a head has {pairs} pairs", where=f"{_WHERE}.{name}")
