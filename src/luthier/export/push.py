"""Send a tuned model to Hugging Face or ModelScope, with its card.

An adapter goes as it is, a few megabytes that name their base; with `merged` the whole model goes. Everything is put together in a
folder first, so that a dry run shows exactly what would be sent, file by file. What a resumed run would need (optimizer, counters)
stays at home. Afterwards the hub is asked what it holds, and names and sizes are compared with what was sent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.errors import UserError
from luthier.export.card import write_card
from luthier.export.merge import merge
from luthier.models.catalog import Hub, default_hub
from luthier.models.hub import FILES, fetch, first_line, modelscope
from luthier.models.source import find_source

SENT = (*FILES, "README.md", "*.png", "*.gguf", "Modelfile", "LICENSE*", "NOTICE*")
"""Patterns of files that are sent."""
LEFT = ("manifest.json", "trainer_state.json", "status.json")
"""Files among them that say things of this machine's run."""


@dataclass(frozen=True, slots=True)
class Sending:
    """What is sent, and where to.

    Attributes:
        hub: its name, for people.
        repo: `owner/name`.
        files: name → bytes.
        url: where it can be seen; empty for a dry run.
    """

    hub: str
    repo: str
    files: dict[str, int]
    url: str = ""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())


def push(
    name: str | Path,
    repo: str,
    *,
    hub: Hub = "auto",
    merged: bool = False,
    private: bool = True,
    checkpoint: int | None = None,
    licence: str | None = None,
    evaluation: Path | None = None,
    dry_run: bool = False,
) -> Sending:
    """Send a model to a hub.

    Args:
        name: a run, an adapter folder, or a folder of anything that was exported.
        repo: `owner/name` on the hub; made if it is not there.
        hub: which one; `auto` is Hugging Face, or ModelScope with `USE_MODELSCOPE_HUB=1`.
        merged: of an adapter, send the whole model with it merged in.
        private: a repository that is made is private.
        checkpoint: for a run, the step of a checkpoint.
        licence: of the tuned model, for the card.
        evaluation: a JSON file with results, for the card.
        dry_run: send nothing.

    Raises:
        UserError: no such model, no valid name, no access, no network, or a hub that holds something else afterwards.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"`{repo}` is no name on a hub", where="REPO", hint="Write `owner/name`.")
    chosen = default_hub() if hub == "auto" else hub
    title = "ModelScope" if chosen == "modelscope" else "Hugging Face"
    with _gathered(name, merged=merged, checkpoint=checkpoint, licence=licence, evaluation=evaluation) as folder:
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        sending = Sending(title, repo, files)
        if dry_run:
            return sending
        send = _to_modelscope if chosen == "modelscope" else _to_huggingface
        return Sending(title, repo, files, send(folder, repo, private, files))


@contextmanager
def _gathered(
    name: str | Path, *, merged: bool, checkpoint: int | None, licence: str | None, evaluation: Path | None
) -> Iterator[Path]:
    """A folder with exactly what is sent."""
    folder = Path(name)
    exported = any(folder.glob("*.gguf")) and not (folder / "config.json").is_file()
    with TemporaryDirectory() as place:
        out = Path(place) / "model"
        if exported:
            _copied(folder, out)
        else:
            source = find_source(name, checkpoint=checkpoint)
            adapter = source.adapter if not merged else None
            if merged and source.adapter is not None:
                merge(name, out, checkpoint=checkpoint)
            else:
                _copied(adapter or fetch(source.base.path), out)
            own = (out / "README.md").is_file() and source.recipe is None and not merged
            if not own:  # a card that somebody has written stays
                write_card(name, out, licence=licence, evaluation=evaluation, adapter=adapter is not None, checkpoint=checkpoint)
        yield out


def _copied(folder: Path, out: Path) -> None:
    """What of a folder is sent; weights are not copied but pointed to."""
    out.mkdir(parents=True)
    for file in folder.iterdir():
        if not file.is_file() or file.name in LEFT or not any(fnmatch(file.name, pattern) for pattern in SENT):
            continue
        if file.suffix in (".safetensors", ".gguf"):
            (out / file.name).symlink_to(file.resolve())
        else:
            shutil.copy(file, out)


def _to_huggingface(folder: Path, repo: str, private: bool, files: dict[str, int]) -> str:
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Sent by Luthier")
        there = {each.path: each.size for each in api.list_repo_tree(repo) if hasattr(each, "size")}
    except Exception as error:  # the library's own, its HTTP client's (no network) and plain ones
        raise UserError(
            f"Hugging Face did not take it ({first_line(error)})",
            where=repo,
            hint="Check the name and the network; `luthier login` stores a token that may write.",
        ) from error
    _demand(there, files, repo)
    return url


def _to_modelscope(folder: Path, repo: str, private: bool, files: dict[str, int]) -> str:
    library = modelscope()
    try:
        api = library.hub.api.HubApi()
        api.create_repo(repo, visibility="private" if private else "public", exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Sent by Luthier")
        there = {each["Path"]: each.get("Size") for each in api.get_model_files(repo)}
    except Exception as error:  # the library raises its own, requests' and plain ones
        raise UserError(
            f"ModelScope did not take it ({first_line(error)})",
            where=repo,
            hint="Check the name and the network; `luthier login --hub modelscope` stores a token that may write.",
        ) from error
    _demand(there, files, repo)
    return f"https://modelscope.cn/models/{repo}"


def _demand(there: dict[str, int | None], files: dict[str, int], repo: str) -> None:
    """Stop where the hub does not hold what was sent.

    Raises:
        UserError: it does not.
    """
    wrong = [name for name, size in files.items() if there.get(name) != size]
    if wrong:
        raise UserError(f"the hub holds another `{wrong[0]}` than was sent", where=repo, hint="Send it again.")
