"""From a recipe's `method` section to PEFT's settings, for the methods that PEFT implements.

PEFT knows the usual layers of some families by name. Where a recipe says `auto`, they are found by what they are instead, so that every
family has them: normalisation layers by their class, the projections of keys, values and of the feed-forward's end by the names that
transformers gives them. What was found is spelled out in the file, so nobody has to find it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.borrowed import config_of, insert, library, load
from luthier.models.adapters.config import ALL_LINEAR
from luthier.models.adapters.format import SCORING
from luthier.models.adapters.targets import check_names
from luthier.models.checkpointing import decoder_layers
from luthier.models.keys import measure_keys
from luthier.models.legacy.names import modern_names
from luthier.models.linear import QuantisedLinear, is_linear, quantised_layers
from luthier.models.score_head import head_names
from luthier.recipe.schema import BOFT, IA3, OFT, LlamaAdapter, NormTuning, PrefixTuning, PromptTuning, PTuning, Section, VeRA

KEYS_AND_VALUES = ("k_proj", "v_proj", "query_key_value", "c_attn", "qkv_proj", "W_pack", "Wqkv", "kv_b_proj")
"""What the projections of keys and values are called; fused ones hold the queries too."""
NOT_TURNED = "kv_b_proj"
"""DeepSeek's layer whose input has four dimensions, which PEFT's OFT takes for a picture."""
FEEDFORWARD_END = ("down_proj", "dense_4h_to_h", "fc2", "mlp.c_proj", "fc_out", "w2")
"""What the last layer of the feed-forward part is called; its input is the inner activation."""


def _ia3(model: PreTrainedModel, method: IA3) -> Any:
    ends = _names_of(model, FEEDFORWARD_END) if method.feedforward == "auto" else _named(model, method.feedforward)
    target = [*_names_of(model, KEYS_AND_VALUES), *ends] if method.target == "auto" else _named(model, method.target)
    if not target:
        raise UserError("no layer of this model has one of the usual names", where="method.target", hint="Name the layers.")
    inner = [name for name in ends if name in target] if method.feedforward == "auto" else list(ends)
    if outside := sorted(set(inner) - set(target)):
        raise UserError(f"`{outside[0]}` is not in `method.target`", where="method.feedforward")
    return library().IA3Config(target_modules=target, feedforward_modules=inner, **_common(model))


def _oft(model: PreTrainedModel, method: OFT) -> Any:
    if NOT_TURNED in method.target:
        raise UserError(f"PEFT's OFT cannot turn `{NOT_TURNED}`", where="method.target", hint="Leave it out.")
    return library().OFTConfig(
        oft_block_size=method.block_size,
        target_modules=_target(model, method.target),
        module_dropout=method.dropout,
        coft=method.constrained,
        exclude_modules=[NOT_TURNED] if _names_of(model, (NOT_TURNED,)) else None,
        **_common(model),
    )


def _boft(model: PreTrainedModel, method: BOFT) -> Any:
    return library().BOFTConfig(
        boft_block_size=method.block_size,
        boft_n_butterfly_factor=method.butterfly_factors,
        target_modules=_target(model, method.target),
        boft_dropout=method.dropout,
        **_common(model),
    )


def _vera(model: PreTrainedModel, method: VeRA) -> Any:
    return library().VeraConfig(
        r=method.rank,
        target_modules=_target(model, method.target),
        vera_dropout=method.dropout,
        d_initial=method.start,
        **_common(model),
    )


def _prefix(model: PreTrainedModel, method: PrefixTuning | PTuning) -> Any:
    keys = measure_keys(model)
    return library().PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=method.pre_seq_len,
        prefix_projection=method.prefix_projection,
        encoder_hidden_size=method.projection_size or keys.heads * keys.size,
        num_layers=keys.layers,
        num_attention_heads=keys.heads,
        token_dim=keys.heads * keys.size,
    )


def _prompt(model: PreTrainedModel, method: PromptTuning) -> Any:
    size = model.get_input_embeddings().weight.shape[1]
    start: dict[str, Any] = {"prompt_tuning_init": "SAMPLE_VOCAB"}
    if method.text is not None:
        start = {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": method.text,
            "tokenizer_name_or_path": model.name_or_path,
        }
    return library().PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=method.pre_seq_len, token_dim=size, **start)


def _llama_adapter(model: PreTrainedModel, method: LlamaAdapter) -> Any:
    layers = len(decoder_layers(model))
    if (method.adapter_layers or 0) > layers:
        raise UserError(f"the model has {layers} layers, not {method.adapter_layers}", where="method.adapter_layers")
    return library().AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=method.adapter_len, adapter_layers=method.adapter_layers or layers
    )


def _norms(model: PreTrainedModel, method: NormTuning) -> Any:
    names = norm_layers(model) if method.target == "auto" else _named(model, method.target)
    return library().LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)


BUILDERS: dict[type[Section], Callable[[PreTrainedModel, Any], Any]] = {
    IA3: _ia3,
    OFT: _oft,
    BOFT: _boft,
    VeRA: _vera,
    PrefixTuning: _prefix,
    PTuning: _prefix,
    PromptTuning: _prompt,
    LlamaAdapter: _llama_adapter,
    NormTuning: _norms,
}
"""Section of the recipe → how PEFT's settings are made of it."""


def apply_borrowed(model: PreTrainedModel, method: Section, *, seed: int, adapter: Path | None) -> tuple[str, ...]:
    """Put a method of PEFT's into `model`, in place, and return what the user should know.

    Args:
        model: a plain model.
        method: a section that has an entry in `BUILDERS`.
        seed: seed of the first values.
        adapter: folder of an adapter of the same kind to continue from; its own settings hold.

    Raises:
        UserError: it does not fit the model, or the adapter is of another kind.
    """
    _check_stored(model, method)
    config = BUILDERS[type(method)](model, method)
    if scores := head_names(model):
        _with_head(config, scores)
    size = getattr(config, "token_dim", None)
    if adapter is None:
        insert(model, config, seed=seed)
    else:
        load(model, adapter, training=True)
        _check_kind(config, config_of(model), adapter)
    _check_made(model, size)
    return () if adapter is None else ("the adapter keeps its own settings; those of `method` are not used",)


def _with_head(config: Any, names: tuple[str, ...]) -> None:
    """Let a head that scores be trained and saved with the adapter.

    Raises:
        UserError: the method keeps nothing beside its prefix.
    """
    if config.is_prompt_learning or not hasattr(config, "modules_to_save"):
        raise UserError(
            f"PEFT saves no head beside an adapter of type {config.peft_type.value}", where="method", hint="Use `lora`, or `ia3`."
        )
    config.task_type, config.modules_to_save = SCORING, list(names)


def _check_stored(model: PreTrainedModel, method: Section) -> None:
    """Refuse a method that PEFT puts beside linear layers where it does not know how they are stored."""
    unknown = any(isinstance(layer, QuantisedLinear) for layer in quantised_layers(model).values())
    if unknown and isinstance(method, IA3 | OFT | BOFT | VeRA):
        raise UserError(
            f"`{method.type}` comes from PEFT, which of layers in few bits knows those of bitsandbytes only",
            where="method.type",
            hint="Use `lora`, or `model.quantization: {bits: 4}` on a base that is not quantised yet.",
        )


def norm_layers(model: nn.Module) -> list[str]:
    """Names of all normalisation layers: last parts where they name nothing else."""
    found = {name for name, module in model.named_modules() if _is_norm(module)}
    short = sorted({name.rpartition(".")[2] for name in found})
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return short if meant == found else sorted(found)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and weight is not None and weight.ndim == 1


def _names_of(model: nn.Module, known: tuple[str, ...]) -> list[str]:
    """Those of some known names that linear layers of this model end in."""
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    return [end for end in known if any(name.endswith(f".{end}") for name in linear)]


def _target(model: PreTrainedModel, target: str | tuple[str, ...]) -> str | list[str]:
    return ALL_LINEAR if isinstance(target, str) else _named(model, target)


def _named(model: PreTrainedModel, names: tuple[str, ...]) -> list[str]:
    """Names of modules as they are called in this model (see `luthier.models.legacy.names`)."""
    found = modern_names(names, model)
    check_names(model, found, "method.target")
    return list(found)


def _common(model: PreTrainedModel) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    return {"task_type": "CAUSAL_LM", "fan_in_fan_out": transposed}


def _check_kind(wanted: Any, found: Any, folder: Path) -> None:
    if wanted.peft_type != found.peft_type:
        raise UserError(
            f"an adapter of type {found.peft_type.value}, and `method` trains {wanted.peft_type.value}",
            where=str(folder),
            hint="Choose the method that the adapter was trained with.",
        )


def _check_made(model: PreTrainedModel, size: int | None) -> None:
    """Refuse what PEFT made otherwise than it was asked to; `size` is that of a prefix's position in one layer."""
    made = config_of(model)
    if (taken := getattr(made, "token_dim", None)) != size:
        raise UserError(
            f"PEFT takes the keys of {type(model).__name__} to have {taken} numbers, and they have {size}",
            where="method.type",
            hint="Use `prompt`, whose prefix is embeddings, or `lora`.",
        )
    factors = getattr(made, "boft_n_butterfly_factor", 1)
    if factors > 1 and not all(getattr(module, "fbd_cuda_available", True) for module in model.modules()):
        raise UserError(
            "butterfly factors need PEFT's CUDA kernel, which cannot be built here",
            where="method.butterfly_factors",
            hint="Use 1.",
        )
