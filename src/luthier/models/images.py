"""Models that take images get one clear refusal: Luthier trains models of text.

They are told by their config, before anything is fetched or converted: an old checkpoint may call itself `qwen` or `chatglm` and see
(Qwen-VL, GLM-4V), and CLIP or a vision transformer has no text to predict at all. Native models whose text part is a model of its own
(Gemma 3) are not asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.errors import UserError

KEYS = (
    "vision_config", "visual", "vision_tower", "mm_vision_tower", "vision_tower_name", "img_processor", "img_size", "image_token_id",
    "image_token_index", "image_size", "patch_size",
)  # fmt: skip
"""Keys of a `config.json` that only models with an eye have."""


def refuse_images(config: Mapping[str, Any], where: str) -> None:
    """Raise for the config of a model that takes images.

    Raises:
        UserError: naming the kind of model.
    """
    if any(config.get(key) is not None for key in KEYS):
        raise UserError(
            f"`{config.get('model_type', 'this')}` is a model that takes images, and Luthier trains models of text",
            where=where,
            hint="Give a language model alone.",
        )
