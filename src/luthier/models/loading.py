"""Load a model folder: the architecture from transformers, the weights from safetensors, and nothing taken on trust.

transformers loads what it can and warns of the rest: weights that are missing from the files are drawn at random. Here each such
warning is an error, because a half-random model trains without complaint.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import logging

import luthier.models.legacy.alibi
import luthier.models.legacy.deepseek_moe_model
import luthier.models.legacy.yuan_model  # noqa: F401
from luthier.errors import UserError
from luthier.models.attention import NAME as SEGMENTS
from luthier.models.dense_head import dense_names, insert_dense, read_dense
from luthier.models.fusion import fuse
from luthier.models.hub import fetch
from luthier.models.images import refuse_images
from luthier.models.legacy.norm_head import unfold
from luthier.models.quantize.base import (
    layers_to_quantise,
    quantise,
    quiet_casts,
    same_numbers_with_and_without_gradients,
    skeleton,
)
from luthier.models.quantize.packed import stored_in_few_bits
from luthier.models.quantize.scheme import Scheme
from luthier.models.rope import scale_rotary
from luthier.models.score_head import FRESH, Labels, head_names
from luthier.recipe.schema import Model


@dataclass(frozen=True, slots=True)
class Scoring:
    """That a model shall score texts, and how its head begins where the folder has none.

    Attributes:
        labels: what it says of a text, and through which dense layers.
        pad: token that fills up rows: which token of a text is its last one depends on it.
        seed: of the values of a new head.
    """

    labels: Labels
    pad: int
    seed: int = 0


def load_model(section: Model, *, dtype: torch.dtype, device: torch.device, scoring: Scoring | None = None) -> PreTrainedModel:
    """The model that a recipe's `model` section names, in eval mode, without cache, every parameter trainable.

    Args:
        section: path or hub id, attention, quantisation, rotary scaling. `adapter` is not applied here (see `methods.apply_method`).
        dtype: type of the weights.
        device: where they go.
        scoring: load the form of the model that scores texts; default: the one that writes them.

    Raises:
        UserError: nothing there, a broken config, weights that are missing or not safetensors, an option that is not installed.
    """
    folder = fetch(section.path, hub=section.hub, revision=section.revision)
    config = read_config(folder, scoring=scoring is not None)
    check_weights(folder)
    if section.rope_scaling is not None:
        scale_rotary(config, section.rope_scaling)
    if scoring is not None:
        scoring.labels.tell(config)
    how = attention(section.attention, config, dtype=dtype, device=device, scoring=scoring is not None)
    options: dict[str, Any] = {"attn_implementation": how}
    if stored := stored_in_few_bits(config, folder):
        options["device_map"] = {"": device}
    scheme, chosen = None, list[str]()
    if section.quantization is not None:
        if stored:
            raise UserError(
                f"this base is quantised with {stored} already", where=str(folder), hint="Leave out `model.quantization`."
            )
        scheme = Scheme(section.quantization, dtype, device)
        chosen, stay = layers_to_quantise(skeleton(config, scoring=scoring is not None), scheme)
        options |= scheme.settings(stay)
    model = _whole(folder, scoring, config=config, dtype=dtype, **options)
    if scheme is not None:
        quantise(model, chosen, scheme)
    same_numbers_with_and_without_gradients(model)
    quiet_casts(model)
    if "device_map" not in options:
        model = model.to(device)
    model.config.use_cache = False
    if scoring is not None:  # not before, or the embedding of that token would not learn
        model.config.get_text_config().pad_token_id = model.config.pad_token_id = scoring.pad
    if device.type == "cpu":
        fuse(model)
    return model.eval()


def load_as_stored(folder: Path, *, scoring: bool = False) -> PreTrainedModel:
    """The model of a folder in the types of its files, on the CPU.

    Args:
        folder: a model folder.
        scoring: the form of it that scores texts; the folder has its head.

    Raises:
        UserError: as `load_model`.
    """
    check_weights(folder)
    config = read_config(folder, scoring=scoring)
    return _whole(folder, Scoring(Labels.of_config(config), 0) if scoring else None, config=config, dtype="auto")


def _whole(folder: Path, scoring: Scoring | None, **options: Any) -> PreTrainedModel:
    """Load a folder, and refuse what transformers would fill up with random numbers, but a head that scores."""
    kind = AutoModelForCausalLM if scoring is None else AutoModelForSequenceClassification
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(scoring.seed if scoring else 0)
            model, report = kind.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except SafetensorError as error:
        raise UserError(f"a weight file cannot be read ({error})", where=str(folder), hint="Fetch it again.") from None
    wrong = sorted(report["missing_keys"]) + sorted(key[0] for key in report["mismatched_keys"])
    if scoring is not None:
        wrong = _without_head(model, _with_dense(model, folder, scoring, wrong))
    if wrong:
        raise UserError(
            f"{len(wrong)} weights are missing or of another shape than the config says, such as `{wrong[0]}`",
            where=str(folder),
            hint="Are all its files there?",
        )
    if scoring is None:
        unfold(model, folder)
    return model


def _with_dense(model: PreTrainedModel, folder: Path, scoring: Scoring, missing: list[str]) -> list[str]:
    """Put the head's dense layers in, if it has some; the names of missing weights, with theirs if the folder has none."""
    if not scoring.labels.dense:
        return missing
    name = insert_dense(model, scoring.labels.dense, seed=scoring.seed)
    others = [key for key in missing if not key.startswith(f"{name}.")]
    return others if read_dense(model, folder) else [*others, *dense_names(model)]


def _without_head(model: PreTrainedModel, missing: list[str]) -> list[str]:
    """The names of missing weights that belong to the body; the modules of the others are remembered as new."""
    poolers = {key.rpartition("pooler.")[0] + "pooler" for key in missing if ".pooler." in key}
    own = (*sorted(poolers), *head_names(model))
    of_head = [key for key in missing if key.startswith(tuple(f"{name}." for name in own))]
    new = tuple(name for name in own if any(key.startswith(f"{name}.") for key in of_head))
    object.__setattr__(model, FRESH, new)
    return [key for key in missing if key not in of_head]


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and reports; what matters in them is raised as an error."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: Path, *, scoring: bool = False) -> PreTrainedConfig:
    """The config of a model folder.

    Args:
        folder: a model folder.
        scoring: of a model that is to score texts.

    Raises:
        UserError: no folder, no `config.json`, a broken one, an architecture that transformers does not have, or one that takes images.
    """
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content["model_type"]
    except FileNotFoundError:
        raise UserError("not a model folder: `config.json` is missing", where=str(folder)) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"not a usable model config ({type(error).__name__}: {error})", where=str(file)) from None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a broken config makes transformers raise
        refuse_images(content, str(file))
        raise UserError(
            f"transformers cannot read this config of type `{kind}` ({_first_line(error)})", where=str(file)
        ) from error
    if type(config) not in (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if scoring else MODEL_FOR_CAUSAL_LM_MAPPING):
        refuse_images(config.to_dict(), str(file))
        if scoring:
            raise UserError(f"transformers has no form of `{kind}` that scores texts", where=str(file), hint="Use another model.")
        raise UserError(f"`{kind}` is not a causal language model", where=str(file))
    if scoring and config.is_encoder_decoder:
        raise UserError(
            f"`{kind}` is an encoder with a decoder", where=str(file), hint="Use a model that is only one of the two."
        )
    return config


def reads_both_ways(config: PreTrainedConfig) -> bool:
    """Whether a model of this config is an encoder, whose tokens see those behind them."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder


def embedding_rows(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has embeddings for, as its config says; None where it does not."""
    return getattr(config.get_text_config(), "vocab_size", None)


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors, or one whose index names files that are not there.

    Raises:
        UserError: saying which.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"not a usable index ({type(error).__name__}: {error})", where=str(index)) from None
        if absent := sorted(name for name in shards if not (folder / name).is_file()):
            raise UserError(f"{len(absent)} of {len(shards)} weight files are missing, such as `{absent[0]}`", where=str(folder))
    elif not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        raise UserError(
            "no safetensors weights here" + (", only pickled ones" if pickled else ""),
            where=str(folder),
            hint="Luthier never unpickles; convert the model to safetensors with transformers first." if pickled else None,
        )


def attention(choice: str, config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device, scoring: bool = False) -> str:
    """The attention implementation to load with: the user's, or the fastest that is installed and computes the same.

    Soft-capped attention (Gemma-2) has no SDPA form, though older transformers run it without the cap when asked; there `auto` is
    eager unless FlashAttention is at hand. On a CPU `auto` computes attention within segments only, where the family takes an
    attention function of another's (Falcon, StableLM look theirs up in a list of their own).

    Raises:
        UserError: the user's choice is not installed or not possible for this model.
    """
    architecture = (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if scoring else MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]
    capped = bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))
    sdpa = bool(getattr(architecture, "_supports_sdpa", False)) and not capped
    half = dtype in (torch.bfloat16, torch.float16)
    installed = importlib.util.find_spec("flash_attn") is not None
    flash = bool(getattr(architecture, "_supports_flash_attn", False)) and installed and half and device.type == "cuda"
    if choice == "auto":
        open_to_ours = bool(getattr(architecture, "_supports_attention_backend", False))
        open_to_ours &= not (scoring and reads_both_ways(config))
        within_segments = SEGMENTS if device.type == "cpu" and open_to_ours else "sdpa"
        return "flash_attention_2" if flash else within_segments if sdpa else "eager"
    if choice == "flash_attention_2" and not flash:
        raise UserError(
            "FlashAttention 2 needs the package `flash-attn`, a CUDA device, half precision and a model that supports it",
            where="model.attention",
            hint="Use `auto`.",
        )
    if choice == "sdpa" and not sdpa:
        raise UserError(f"{architecture.__name__} has no SDPA attention", where="model.attention", hint="Use `auto`.")
    return choice


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
