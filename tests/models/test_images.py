"""Models that take images get one clear refusal, whatever they call themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPConfig, LlavaConfig, ViTConfig

import luthier.models
from luthier.errors import UserError
from luthier.models.loading import read_config

REMOTE: dict[str, dict[str, Any]] = {
    "qwen": {"visual": {"image_size": 448}, "vocab_size": 151936},
    "chatglm": {"vision_config": {"patch_size": 14}, "padded_vocab_size": 151552},
    "internvl_chat": {"vision_config": {"hidden_size": 1024}, "llm_config": {"model_type": "internlm2"}},
    "llava_llama": {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
}
"""Published with code of their own: model type → keys of its config."""


@pytest.mark.parametrize("config", [CLIPConfig(), ViTConfig(), LlavaConfig()], ids=lambda config: config.model_type)
def test_models_of_transformers(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"`{config.model_type}` is a model that takes images") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", REMOTE)
def test_models_with_code_of_their_own(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | REMOTE[kind]))
    with pytest.raises(UserError, match=f"`{kind}` is a model that takes images") as caught:
        luthier.models.load(str(tmp_path))
    assert "\n" not in str(caught.value)
