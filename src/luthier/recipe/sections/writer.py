"""Who writes the answers of a rollout."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.recipe.sections.base import Positive, Section

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class VLLM(Section):
    """A vLLM server writes the answers, with the adapter as it is at each rollout; only with `method: lora`."""

    type: Literal["vllm"] = "vllm"
    url: str
    """Address of the server, such as `http://localhost:8000`. Redirects are not followed and proxies not asked."""
    folder: str = ""
    """Where adapters are laid for the server, which has to see it under the same path. Default: the folder for temporary files."""
    token_env: str = ""
    """Name of an environment variable whose value is sent as bearer token."""
    requests: Positive = 64
    """Prompts that are sent at the same time."""
    timeout: Seconds = 600
    """Seconds for one prompt with all its answers."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("`url` should begin with http:// or https://")
        return value.rstrip("/").removesuffix("/v1")


Writer = Literal["torch"] | VLLM
"""The training model itself, or a server."""
