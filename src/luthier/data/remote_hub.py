"""Data sets on Hugging Face and ModelScope, file by file.

Which files belong to a subset and split is read from the card (`configs` with `data_files`, as the hub's own viewer does), else from
their names: `data/train-00000-of-00002.parquet`, `en/validation.jsonl`. Where a data set consists of a loading script, which is never
run, the parquet files that Hugging Face makes of it (`refs/convert/parquet`) are taken, if it has made some.

From Hugging Face a file is fetched when its rows are asked for, into the hub's own cache, or read where it lies if `data.streaming` is on;
a data set is known by its commit. Which files were chosen is remembered, so that a machine that cannot reach the hub goes on with the
commit it has. ModelScope gives a whole data set (or `folder` of it) at once, into its own cache.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from luthier.data.far_file import FarFile
from luthier.data.parts import KINDS, Part, is_data, local_part
from luthier.errors import UserError, did_you_mean
from luthier.files import cache_home, write_json

_CONVERTED = "refs/convert/parquet"
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class _Unreachable(UserError):
    """The hub does not answer."""


class Wanted(NamedTuple):
    """What is wanted of a data set on a hub."""

    revision: str | None
    subset: str | None
    split: str | None
    folder: str | None


def hub_parts(
    name: str, hub: str, *, revision: str | None, subset: str | None, split: str | None, folder: str | None
) -> tuple[Part, ...]:
    """The files of a data set on a hub.

    Raises:
        UserError: no such data set, subset or split; no access; no network; nothing but code in it.
    """
    wanted = Wanted(revision, subset, split, folder)
    if hub == "modelscope" or (hub == "auto" and os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "yes")):
        return _from_modelscope(name, wanted)
    return _from_huggingface(name, wanted)


def choose(name: str, files: Sequence[str], card: Mapping[str, Any] | None, wanted: Wanted) -> list[str]:
    """The files of a subset and split, in order.

    Args:
        name: of the data set, for messages.
        files: paths of all files in it.
        card: the YAML head of its README.
        wanted: `split` is `train` by default.

    Raises:
        UserError: there is no such subset or split, or one has to be chosen.
    """
    data = sorted(file for file in files if is_data(file))
    if wanted.folder:
        data = [file for file in data if file.startswith(wanted.folder.strip("/") + "/")]
        if not data:
            raise UserError(f"there is no data in the folder `{wanted.folder}`", where=name)
        return _of_split(name, data, wanted.split)
    configs = [each for each in (card or {}).get("configs") or [] if isinstance(each, dict) and each.get("data_files")]
    if configs and data:
        return _of_config(name, data, _config(name, configs, wanted.subset), wanted.split)
    if wanted.subset and data:
        inside = [file for file in data if wanted.subset in re.split(r"[/.]", file)]
        if not inside:
            folders = {file.split("/")[0] for file in data if "/" in file}
            raise UserError(f"there is no subset `{wanted.subset}`", where=name, hint=did_you_mean(wanted.subset, folders))
        data = inside
    return _of_split(name, data, wanted.split)


def _config(name: str, configs: list[dict[str, Any]], subset: str | None) -> dict[str, Any]:
    named = {str(each.get("config_name", "default")): each for each in configs}
    if subset:
        if subset not in named:
            raise UserError(f"there is no subset `{subset}`", where=name, hint=did_you_mean(subset, named))
        return named[subset]
    chosen = next((each for each in configs if each.get("default")), named.get("default"))
    if chosen is None and len(configs) > 1:
        raise UserError("has several subsets", where=name, hint=f"Set `subset` to one of: {', '.join(sorted(named))}.")
    return chosen or configs[0]


def _of_config(name: str, data: list[str], config: Mapping[str, Any], split: str | None) -> list[str]:
    """The files that a card lists for a split."""
    listed = config["data_files"]
    entries = (
        listed if isinstance(listed, list) and listed and isinstance(listed[0], dict) else [{"split": "train", "path": listed}]
    )
    by_split = {str(entry.get("split", "train")): entry.get("path") for entry in entries if isinstance(entry, dict)}
    wanted = split or "train"
    if wanted not in by_split and (split or len(by_split) > 1):
        raise UserError(f"there is no split `{wanted}`", where=name, hint=f"There are: {', '.join(sorted(by_split))}.")
    paths = by_split.get(wanted, next(iter(by_split.values())))
    base = str(config.get("data_dir") or "").strip("/")
    patterns = [os.path.join(base, str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    found = [file for file in data if any(_fits(file, pattern) for pattern in patterns)]
    if not found:
        raise UserError(f"its card names files that are not there: {', '.join(patterns)}", where=name)
    return found


def _fits(file: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./")
    return fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(file, pattern.replace("**/", ""))


def _of_split(name: str, data: list[str], split: str | None) -> list[str]:
    """The files whose names say that they belong to a split; `train` is also what no name says anything about."""
    wanted = split or "train"
    usual = next((each for each, names in _SPLITS.items() if wanted in names), None)
    said = {file: _split_of(file) for file in data}
    chosen = [file for file in data if (said[file] == usual if usual else wanted in re.split(r"[/.-]", file))]
    if not chosen and usual == "train":
        chosen = [file for file in data if said[file] is None]
    if not chosen:
        known = sorted({each for each in said.values() if each})
        raise UserError(f"there is no split `{wanted}`", where=name, hint=f"There are: {', '.join(known)}." if known else None)
    return chosen


def _split_of(file: str) -> str | None:
    words = re.split(r"[/._\s-]+", file.lower())
    return next((split for split, names in _SPLITS.items() if any(name in words for name in names)), None)


def _from_huggingface(name: str, wanted: Wanted) -> tuple[Part, ...]:
    memo = _memo(name, wanted)
    try:
        commit, files = _looked_up(name, wanted)
    except _Unreachable:
        if not memo.is_file():
            raise
        known = json.loads(memo.read_text("utf-8"))
        commit, files = known["commit"], known["files"]
    else:
        memo.parent.mkdir(parents=True, exist_ok=True)
        for known_as in (memo, _memo(name, wanted._replace(revision=commit))):  # a stream goes on with the commit it began with
            write_json(known_as, {"name": name, "commit": commit, "files": files})
    return tuple(_part(name, commit, file) for file in files)


def _memo(name: str, wanted: Wanted) -> Path:
    """Where the files that were chosen are remembered."""
    return cache_home() / "hubs" / f"{sha256(json.dumps([name, *wanted]).encode()).hexdigest()[:32]}.json"


def _looked_up(name: str, wanted: Wanted) -> tuple[str, list[str]]:
    """The commit of a data set and the files of it that are wanted.

    Raises:
        UserError: there is no such set, subset or split, or it holds no data.
    """
    info = _info(name, wanted.revision)
    files = [file.rfilename for file in info.siblings or ()]
    if not any(is_data(file) for file in files):
        if not any(file.endswith(".py") for file in files):
            raise UserError(f"holds no data that is read here ({', '.join(KINDS)})", where=name)
        info = _converted(name)
        files = [file.rfilename for file in info.siblings or ()]
    card = info.card_data.to_dict() if getattr(info, "card_data", None) else None
    return info.sha, choose(name, files, card, wanted)


def _converted(name: str) -> Any:
    """The parquet files that the hub made of a data set with a loading script.

    Raises:
        UserError: it made none.
    """
    try:
        return _info(name, _CONVERTED)
    except UserError as error:
        what = "comes as a script that loads it, and code from a hub is not run here"
        raise UserError(what, where=name, hint="Load it elsewhere, save it as JSON lines, and name that file.") from error


def _info(name: str, revision: str | None) -> Any:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return huggingface_hub.HfApi().dataset_info(name, revision=revision)
    except errors.GatedRepoError:
        hint = f"Ask for access at https://huggingface.co/datasets/{name}, then set HF_TOKEN or run `luthier login`."
        raise UserError("this data set is gated", where=name, hint=hint) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"no revision `{revision}` on Hugging Face", where=name) from None
    except errors.RepositoryNotFoundError:
        what, hint = (
            "no such file or folder, and no such data set on Hugging Face",
            "Check the name; for a private one set HF_TOKEN.",
        )
        raise UserError(what, where=name, hint=hint) from None
    except Exception as error:  # whatever the network raises, by whichever client the library uses
        what = f"no such file or folder, and Hugging Face cannot be reached ({_first_line(error)})"
        raise _Unreachable(what, where=name, hint="Check the network and HF_ENDPOINT, or give a local file.") from error


def _part(name: str, commit: str, file: str) -> Part:
    def fetch() -> Path:
        import huggingface_hub

        try:
            return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=commit))
        except Exception as error:  # whatever the network raises, by whichever client the library uses
            what = f"the download of `{file}` failed ({_first_line(error)})"
            raise UserError(what, where=name, hint="Run it again; it goes on from here.") from error

    def where_it_lies() -> io.RawIOBase:
        import huggingface_hub

        copy = huggingface_hub.try_to_load_from_cache(name, file, revision=commit, repo_type="dataset")
        if isinstance(copy, str):
            return io.FileIO(copy)
        hub = huggingface_hub.HfFileSystem()
        return FarFile(f"{name}/{file}", lambda: hub.open(f"datasets/{name}@{commit}/{file}", "rb"))

    version = f"huggingface {name} {commit} {file}"
    return Part(f"{name}/{file}", fetch, version, tuple(Path(file).suffixes), where_it_lies, commit)


def _from_modelscope(name: str, wanted: Wanted) -> tuple[Part, ...]:
    if importlib.util.find_spec("modelscope") is None:
        hint = "Install it with `pip install 'luthier[modelscope]'`."
        raise UserError("the ModelScope hub needs its library", where=name, hint=hint)
    import modelscope
    import modelscope.hub.api

    if token := os.environ.get("MODELSCOPE_API_TOKEN"):
        modelscope.hub.api.HubApi().login(token)
    inside = f"{wanted.folder.strip('/')}/" if wanted.folder else ""
    patterns = [f"{inside}*.{kind}{packed}" for kind in (*KINDS, "ndjson") for packed in ("", ".gz", ".zst")]
    try:
        folder = Path(
            modelscope.dataset_snapshot_download(name, revision=wanted.revision, allow_patterns=[*patterns, "README.md"])
        )
    except Exception as error:  # the library raises its own, requests' and plain ones
        raise UserError(
            f"ModelScope did not give the data set ({_first_line(error)})", where=name, hint="Check the name."
        ) from error
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if not any(is_data(file) for file in files):
        raise UserError(f"holds no data that is read here ({', '.join(KINDS)})", where=name)
    return tuple(local_part(folder / file) for file in choose(name, files, _card(folder / "README.md"), wanted))


def _card(readme: Path) -> dict[str, Any] | None:
    """The YAML head of a README."""
    import yaml

    head = re.match(r"---\n(.*?)\n---", readme.read_text("utf-8"), re.DOTALL) if readme.is_file() else None
    try:
        values = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return None
    return values if isinstance(values, dict) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
