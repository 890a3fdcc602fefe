r"""Folders that GPTQ or AWQ has quantised, as frozen bases: read as they lie, unpacked by torch on any device.

Both store W [out, in] transposed, as whole numbers q of b bits packed into int32, with a scale s and a zero point z for each group of g
inputs and each output:

    Wᵀ[i, o] = s[k, o] · (q[i, o] - z[k, o]),        k = i // g, or k = g_idx[i] where GPTQ has sorted the inputs (`desc_act`)

| | `qweight` | `qzeros` | order within an int32 |
|---|---|---|---|
| GPTQ | [in · b/32, out] | [groups, out · b/32], of z - 1 (in `gptq_v2` of z) | first number in the lowest bits |
| AWQ (`gemm`) | [in, out / 8] | [groups, out / 8] | numbers 0 2 4 6 1 3 5 7, the first in the lowest bits |

The libraries that made such folders compute with kernels for one kind of GPU each. Training multiplies whole batches, for which unpacking
is a small part, so these lines serve on every device. Sources: GPTQ (Frantar et al. 2022, arXiv:2210.17323), AWQ (Lin et al. 2023,
arXiv:2306.00978); the layouts are those of AutoGPTQ and AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from luthier.errors import UserError
from luthier.models.linear import QuantisedLinear
from luthier.models.quantize.base import SCHEME_ATTRIBUTE
from luthier.models.stored import StoredWeights

METHOD = "luthier_packed"
"""What transformers is told that such a folder is quantised with, so that it asks here and not for the library that made it."""
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in an int32 of AWQ the eight neighbours are found."""
LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
BITS = {"gptq": (2, 4, 8), "awq": (4,)}
"""What is read of each method; a file that names no layout has the first."""


class PackedLinear(QuantisedLinear):
    """A weight of GPTQ or AWQ. Buffers are named as in the files: `qweight`, `qzeros`, `scales`, and `g_idx` where the file has it.

    Args:
        tensors: name → empty tensor of the stored shape and type; `bias` among them if the file has one.
        settings: the folder's `quantization_config`.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor | None

    def __init__(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        outputs = tensors["scales"].shape[1]
        self.bits, self.awq = int(settings["bits"]), settings["quant_method"] == "awq"
        inputs = tensors["qweight"].shape[0] * (1 if settings["quant_method"] == "awq" else 32 // int(settings["bits"]))
        super().__init__(inputs, outputs, tensors.get("bias"))
        self.offset = 0 if self.awq or settings.get("checkpoint_format") == "gptq_v2" else 1
        for name in PARTS:
            self.register_buffer(name, tensors.get(name))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], unpacked."""
        whole = self._columns(self.qweight) if self.awq else self._rows(self.qweight)
        zeros = (self._columns(self.qzeros) + self.offset) & (2**self.bits - 1)
        scales = self.scales.to(dtype)
        if self.g_idx is not None:
            group = self.g_idx.long()
            return ((whole - zeros[group]).to(dtype) * scales[group]).T
        grouped = whole.view(len(scales), -1, self.out_features)
        return ((grouped - zeros[:, None]).to(dtype) * scales[:, None]).view(self.in_features, self.out_features).T

    def _rows(self, packed: Tensor) -> Tensor:
        """int32 [in · b/32, out] to [in, out]."""
        return self._parts(packed).movedim(-1, 1).reshape(-1, packed.shape[1])

    def _columns(self, packed: Tensor) -> Tensor:
        """int32 [n, out · b/32] to [n, out]."""
        parts = self._parts(packed)
        return (parts[..., list(AWQ_ORDER)] if self.awq else parts).reshape(len(packed), -1)

    def _parts(self, packed: Tensor) -> Tensor:
        """The numbers in each int32, lowest bits first: int32 [..., 32 / b]."""
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32, device=packed.device)
        return (packed[..., None] >> shifts) & (2**self.bits - 1)


def stored_in_few_bits(config: PreTrainedConfig, folder: Path) -> str | None:
    """How the weights of a folder are quantised already, in a word; None if they are not. Afterwards transformers can load them.

    bitsandbytes' own files are left to transformers. Packed ones are led to `PackedQuantizer`, by a word in `config`.

    Raises:
        UserError: a way of quantising, a layout, or a number of bits that is not read.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings = dict(found if isinstance(found, dict) else found.to_dict())
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))
    if method == "bitsandbytes":
        return method
    layout = str(settings.get("version" if method == "awq" else "checkpoint_format") or LAYOUTS.get(method, ("",))[0]).lower()
    if layout not in LAYOUTS.get(method, ()) or settings.get("bits") not in BITS[method]:
        bits = [f"{settings['bits']} bits"] if "bits" in settings else []
        named = [method, *bits, *([f"layout `{layout}`"] if layout else [])]
        raise UserError(
            f"weights quantised as {', '.join(named)} are not read",
            where=str(folder / "config.json"),
            hint="Take the unquantised model, and quantise it with `model.quantization`.",
        )
    settings |= {"quant_method": method, "checkpoint_format": layout}
    config.quantization_config = {"quant_method": METHOD, "folder": str(folder), "settings": settings}
    return method


def packed_tensors(folder: Path, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Layer → its stored tensors, empty (on the `meta` device), for every packed layer in the files of a folder.

    Args:
        folder: of safetensors.
        dtype: type of the model, and so of biases; the rest stays as it is stored.
    """
    stored = StoredWeights(folder)
    layers: dict[str, dict[str, Tensor]] = {}
    for key in stored:
        layer, _, name = key.rpartition(".")
        if name in (*PARTS, "bias"):
            kind = dtype if name == "bias" else stored[key].dtype
            layers.setdefault(layer, {})[name] = torch.empty(stored[key].shape, dtype=kind, device="meta")
    return {layer: tensors for layer, tensors in layers.items() if "qweight" in tensors}


PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""Tensors of a packed layer; all but the last are always there."""


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What transformers carries from the folder to the quantizer."""

    def __init__(self, folder: str = "", settings: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.folder, self.settings = folder, settings or {}


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts packed layers where the files have them; transformers then fills their buffers by name."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        settings = self.quantization_config.settings
        layers = packed_tensors(Path(self.quantization_config.folder), model.dtype)
        known = {name for name, _ in model.named_modules()}
        if strange := next((name for name in layers if name not in known), None):
            raise UserError(
                f"`{strange}` is quantised in the files and no layer of this model, as single experts are",
                where=self.quantization_config.folder,
                hint="Take the unquantised model, and quantise it with `model.quantization`.",
            )
        for name, tensors in layers.items():
            model.set_submodule(name, PackedLinear(tensors, settings))
        object.__setattr__(model, SCHEME_ATTRIBUTE, f"{settings['bits']} bits ({settings['quant_method'].upper()})")

    def is_serializable(self) -> bool:
        """Luthier writes adapters and merged models only."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters beside the layers are."""
        return True
