"""From the name of a model to a folder on this disk.

A name is `tiny` (the embedded model), a folder, a name of the catalogue, or a hub id; they are tried in this order. Hub models are
fetched by the hub's own library into its own cache, so what other tools have downloaded is used, a torn download is taken up where it
broke, and the environment is honoured as everywhere: `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`; for ModelScope
`MODELSCOPE_API_TOKEN`, `MODELSCOPE_CACHE`, and `USE_MODELSCOPE_HUB=1` to make it the default. Only config, tokenizer and safetensors files
are fetched: no code, no pickles. Old checkpoints that exist as `.bin` files alone are the exception; they are converted at once
(`luthier.models.legacy`), and the folder that is handed on is the native one.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

from luthier.errors import UserError
from luthier.models import catalog
from luthier.models.catalog import Hub, default_hub
from luthier.models.legacy.cache import native_folder, native_home
from luthier.models.legacy.registry import family_of

TINY = "tiny"
FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.tiktoken", "vocab*", "merges.txt"]
"""Patterns of the files that a model or an adapter is made of."""
CODE_AND_PICKLES = ["*.py", "*.bin", "*.pt", "*.pth", "original/*", "onnx/*", "consolidated*"]
"""Never fetched, also where a pattern above fits."""
PICKLED_WEIGHTS = ["pytorch_model*.bin", "adapter_model.bin"]
"""Fetched for old checkpoints and adapters only, and only where there are no safetensors."""

_NAME = re.compile(r"[\w-][\w.-]*")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def fetch(path: str, *, hub: Hub = "auto", revision: str | None = None) -> Path:
    """The folder of a model, tokenizer or adapter, downloaded if need be; of an old checkpoint the native copy.

    Args:
        path: `tiny`, a folder, a name of the catalogue, or a hub id.
        hub: where it is looked up; `auto` is Hugging Face, or ModelScope with `USE_MODELSCOPE_HUB=1`. A model of the catalogue that is
            on one hub only is taken from there.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: no such folder, no such model, no access to it, or no network; always with what to do.
    """
    return native_folder(find(path, hub=hub, revision=revision))


def find(path: str, *, hub: Hub = "auto", revision: str | None = None) -> Path:
    """The folder of a model as it was published, downloaded if need be. As `fetch`, but old checkpoints stay as they are."""
    if path == TINY:
        return _embedded()
    if path and (folder := Path(path).expanduser()).is_dir():
        return folder.resolve()
    if path and folder.is_file():
        raise UserError("a file, but a model is a folder", where=path, hint="Give the folder it lies in.")
    if Path(path).is_relative_to(native_home()):  # as adapters name their base
        raise UserError(
            "the converted copy of an old checkpoint is there no longer",
            where=path,
            hint="Name the old checkpoint itself, and an adapter with `--adapter`; it is converted anew.",
        )
    place = path
    if _NAME.fullmatch(path):
        place, hub = catalog.get(path).place(hub)
        if hub == "auto":
            return _named_folder(path, Path(place))
    elif not _HUB_ID.fullmatch(path):
        raise UserError(
            "no such folder", where=path, hint="Give an existing model folder, a hub id such as `owner/model`, or `tiny`."
        )
    if (default_hub() if hub == "auto" else hub) == "modelscope":
        return _from_modelscope(place, revision, asked=path)
    return _from_huggingface(place, revision, asked=path)


def login(token: str, hub: Hub = "auto") -> str:
    """Store an access token where the hub's library keeps it.

    Returns:
        The hub's name, for a message.

    Raises:
        UserError: the hub refuses the token, or its library is not installed.
    """
    if (default_hub() if hub == "auto" else hub) == "modelscope":
        api = modelscope().hub.api.HubApi()
        try:
            api.login(token)
        except Exception as error:  # the library raises its own, requests' and plain ones
            raise UserError(
                f"ModelScope refused the token ({first_line(error)})", hint="Make a new one on modelscope.cn."
            ) from error
        return "ModelScope"
    import huggingface_hub

    try:
        huggingface_hub.login(token=token, add_to_git_credential=False)
    except Exception as error:  # the library's own, its HTTP client's (no network) and plain ones
        raise UserError(
            f"Hugging Face refused the token ({first_line(error)})", hint="Make a new one at huggingface.co/settings/tokens."
        ) from error
    return "Hugging Face"


def _embedded() -> Path:
    folder = Path(__file__).with_name(TINY)
    if not (folder / "config.json").is_file():
        raise UserError("the embedded model is missing from this installation", where=TINY, hint="Install Luthier again.")
    return folder


def _named_folder(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"the catalogue says it is in `{folder}`, and there is no such folder", where=name, hint="Mend models.yaml."
        )
    return folder


def _from_huggingface(name: str, revision: str | None, *, asked: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return _snapshot(huggingface_hub.snapshot_download, name, revision)
    except errors.GatedRepoError:
        raise UserError(
            "this model is gated",
            where=asked,
            hint=f"Ask for access at https://huggingface.co/{name}, then set HF_TOKEN or run `luthier login`.",
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"no revision `{revision}` on Hugging Face", where=asked, hint="Check `model.revision`.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            "no such folder, and no such model on Hugging Face",
            where=asked,
            hint="Check the name; for a private model set HF_TOKEN or run `luthier login`.",
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            "no such folder, the model is not in the cache, and the hub cannot be reached",
            where=asked,
            hint="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder.",
        ) from None
    except Exception as error:  # whatever the network raises, by whichever client the library uses
        raise UserError(
            f"the download failed ({first_line(error)})", where=asked, hint="Run it again; it goes on from here."
        ) from error


def _snapshot(download: Callable[..., str], name: str, revision: str | None) -> Path:
    """What a hub's library downloads; of an old checkpoint or adapter without safetensors the pickled weights too."""
    folder = Path(download(name, revision=revision, allow_patterns=FILES, ignore_patterns=CODE_AND_PICKLES))
    old = family_of(folder) is not None or (folder / "adapter_config.json").is_file()
    if old and not any(folder.glob("*.safetensors")):
        never = [pattern for pattern in CODE_AND_PICKLES if pattern != "*.bin"]
        folder = Path(download(name, revision=revision, allow_patterns=[*FILES, *PICKLED_WEIGHTS], ignore_patterns=never))
    return folder


def _from_modelscope(name: str, revision: str | None, *, asked: str) -> Path:
    library = modelscope()
    try:
        return _snapshot(library.snapshot_download, name, revision)
    except Exception as error:  # the library raises its own, requests' and plain ones
        raise UserError(
            f"ModelScope did not give the model ({first_line(error)})",
            where=asked,
            hint="Check the name; for a private or gated model set MODELSCOPE_API_TOKEN or run `luthier login`.",
        ) from error


def modelscope():  # type: ignore[no-untyped-def]
    """The ModelScope library, logged in with `MODELSCOPE_API_TOKEN` if that is set."""
    if importlib.util.find_spec("modelscope") is None:
        raise UserError(
            "the ModelScope hub needs its library", where="model.hub", hint="Install it with `pip install 'luthier[modelscope]'`."
        )
    import modelscope
    import modelscope.hub.api

    if token := os.environ.get("MODELSCOPE_API_TOKEN"):
        modelscope.hub.api.HubApi().login(token)
    return modelscope


def first_line(error: Exception) -> str:
    """What an error of a library says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
