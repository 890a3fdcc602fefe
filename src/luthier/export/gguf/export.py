"""`luthier export gguf`: a run, a checkpoint or a model folder as one file for llama.cpp, and proof that it answers alike.

The steps: one ordinary folder (an adapter is merged in) → the family's plan of tensors → settings and vocabulary → the file, tensor by
tensor under a temporary name → read back and compared → renamed. Whatever fails leaves nothing behind.

Read back by: llama.cpp itself where `llama-cpp-python` is installed. Else the weights are turned back into a model folder, which
transformers computes; that proves the numbers and not the settings, so the tests hold each family against llama.cpp.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from torch import Tensor

from luthier.errors import UserError
from luthier.export.check import Difference, Measure, answer_of, difference, question
from luthier.export.gguf.architectures import family_of, settings_of
from luthier.export.gguf.llamacpp import LlamaCpp, installed, requantise
from luthier.export.gguf.plan import Planned, Type, plan
from luthier.export.gguf.settings import rotation_tensors
from luthier.export.gguf.vocabulary import vocabulary_of
from luthier.export.gguf.write import library, unpack, write
from luthier.export.source import Ready, ready
from luthier.files import is_disk_full, sync, temporary_sibling
from luthier.models.stored import StoredWeights

TOLERANCE: dict[str, tuple[Measure, float]] = {
    "f32": ("logits", 1e-3),
    "f16": ("perplexity", 0.005),
    "bf16": ("perplexity", 0.01),
    "q8_0": ("perplexity", 0.01),
}
"""What is compared, and how large the difference may be."""
COARSE: tuple[Measure, float] = ("perplexity", 0.15)
"""The same for types of fewer bits."""


def export_gguf(
    name: str | Path,
    out: str | Path,
    *,
    kind: str = "f16",
    adapter: str | Path | None = None,
    checkpoint: int | None = None,
    tolerance: float | None = None,
    check: bool = True,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Difference | None:
    """Write a model as one GGUF file.

    Args:
        name: a run's name or folder, a model folder or hub id, or an adapter folder.
        out: the file to write; it must not exist yet.
        kind: type of the weights: `f32`, `f16`, `bf16`, `q8_0`, or another that `llama-quantize` knows.
        adapter: an adapter for a model.
        checkpoint: for a run, the step of a checkpoint.
        tolerance: how large the difference may be, in place of the usual one of the type.
        check: read the file back and compare.
        tell: hears what the user should know.

    Returns:
        How far the file is from the model; None without `check`.

    Raises:
        UserError: no such model, a family that llama.cpp computes otherwise, a tokenizer that it does not have, a file that is there
            already, a package or tool that is missing, or a result that differs too much.
    """
    library()
    out = new_file(out)
    with ready(
        name, out, adapter=adapter, checkpoint=checkpoint, dtype="bfloat16" if kind.lower() == "bf16" else "float32"
    ) as model:
        return write_checked(model, out, kind=kind, tolerance=tolerance, check=check, tell=tell)


def write_checked(
    model: Ready,
    out: Path,
    *,
    kind: str,
    tolerance: float | None = None,
    check: bool = True,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Difference | None:
    """Write a model that is whole; arguments, result and errors are those of `export_gguf`."""
    library()
    kind = kind.lower()
    own: Type = next((each for each in get_args(Type) if each == kind), "f32")
    temporary = temporary_sibling(out.absolute())
    finer = temporary.with_suffix(".finer")
    try:
        tensors = _write(model, temporary, own, model.name, tell)
        if own != kind:
            temporary.rename(finer)
            requantise(finer, temporary, kind)
        found = _compared(model, temporary, tensors, kind, tolerance) if check else None
        if found is not None:
            found.demand(model.name)
        sync(temporary)
        temporary.rename(out)
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else error.strerror or error
        raise UserError(f"cannot write the file: {reason}", where=str(out)) from error
    finally:
        for left in (temporary, finer):
            left.unlink(missing_ok=True)
    return found


def new_file(out: str | Path) -> Path:
    """The file to write, its folder made.

    Raises:
        UserError: it is there already.
    """
    out = Path(out)
    if out.exists():
        raise UserError("already there", where=str(out), hint="Give another file with `--out`.")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _write(model: Ready, file: Path, kind: Type, where: str, tell: Callable[[str], None]) -> list[Planned]:
    config = model.config
    if not str((config.architectures or ["CausalLM"])[0]).endswith(("CausalLM", "LMHeadModel")):
        raise UserError(
            f"`{config.architectures[0]}` does not write texts", where=where, hint="GGUF is written of models that do."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("the weights are in few bits already", where=where, hint="Export the model before it was quantised.")
    family = family_of(config, where)
    stored = StoredWeights(model.folder)
    tensors = plan(stored, config, family, kind, where)
    source = model.template.source if model.template is not None else None
    vocabulary = vocabulary_of(model.tokenizer, config.vocab_size, model.ends(), source, where)
    for note in (*family.notes(config), *vocabulary.notes):
        tell(note)
    settings, extra = settings_of(family, config), rotation_tensors(config)
    write(file, family.architecture, settings, vocabulary, tensors, extra, stored, kind, model.name)
    return tensors


def _compared(model: Ready, file: Path, tensors: list[Planned], kind: str, tolerance: float | None) -> Difference:
    """The difference between the file and the folder that it was made of."""
    tokens = question(model.tokenizer, model.config.vocab_size)
    measure, usual = TOLERANCE.get(kind, COARSE)
    expected = answer_of(model.folder, tokens)
    found, reader = _read_back(model, file, tensors, tokens)
    return difference(measure, expected, found, tokens, usual if tolerance is None else tolerance, reader)


def _read_back(model: Ready, file: Path, tensors: list[Planned], tokens: Tensor) -> tuple[Tensor, str]:
    """Logits of the file, and who has computed them."""
    if installed():
        with LlamaCpp(file) as engine:
            return engine.logits(tokens), "llama.cpp"
    return turned_back(model.folder, file, tensors, tokens), "transformers"


def turned_back(folder: Path, file: Path, tensors: list[Planned], tokens: Tensor) -> Tensor:
    """Logits [T, V] of a GGUF file whose weights are turned back into a model folder.

    Args:
        folder: of the model, for its config.
        file: the GGUF file.
        tensors: what it holds.
        tokens: [T] to ask.
    """
    with TemporaryDirectory(dir=file.parent) as place:
        back = Path(place)
        for small in folder.glob("*config.json"):
            shutil.copy(small, back)
        unpack(file, tensors, back)
        return answer_of(back, tokens)
