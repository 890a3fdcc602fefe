"""The token store: everything the training loop reads, as a few flat columns on disk.

A store is a folder of raw little-endian columns that are memory-mapped, so that opening one costs nothing whatever its size,
several processes share the pages, and no row is ever copied before a batch is made of it.

Per token (N in all), segments one after the other:

- `tokens` int32 [N]: token ids.
- `weight` float16 [N]: weight of the token as a target of the loss; 0 = not learnt. The first token of a segment has nothing
  before it to be predicted from, so its weight is always 0.

Per segment (S in all):

- `offsets` int64 [S + 1]: segment `i` owns the tokens `offsets[i]:offsets[i + 1]`.
- `example` int32 [S]: number of the example the segment was made from, counted over all sources.
- `source` int16 [S]: index into `header.sources`.
- `group` int32 [S]: segments of one group (a preference pair) stay together in one micro-batch.
- `file` int32 [S]: index into the files of its source, `header.sources[source].files`.
- `line` int32 [S]: line of the example in its file.
- `label` int8 [S]: preference: 1 chosen, 0 rejected; feedback: 1 liked, 0 not; else -1.
- `payload_ends` int64 [S]: where its payload ends; nearly always there is none.

Besides, `payload` uint8: what prompts bring that is not tokens, such as the answer that a reward compares with, as JSON.

`header.json` carries the format version and is written last: a folder without it is not a store. A store of another version is
refused; `prepare` then builds a new one, since the version is part of the key it looks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier import faults
from luthier.errors import UserError
from luthier.files import write_json

FORMAT_VERSION = 3
"""Raised when the columns or their meaning change."""

HEADER = "header.json"
PER_TOKEN = {"tokens": "<i4", "weight": "<f2"}
PER_SEGMENT = {"example": "<i4", "source": "<i2", "group": "<i4", "file": "<i4", "line": "<i4", "label": "|i1"}
COLUMNS = {**PER_TOKEN, "offsets": "<i8", **PER_SEGMENT, "payload_ends": "<i8", "payload": "|u1"}
"""Column name → numpy dtype. Each lies in `<name>.bin`."""


class Segment(NamedTuple):
    """One token sequence, on its way into a store.

    Args:
        tokens: int32 [T].
        weight: float [T], loss weight of each token as a target.
        example: number of its example.
        source: index of its source.
        group: number of its group.
        line: line of the example in its file.
        label: 1 or 0 for preference and feedback, else -1.
        file: number of that file in its source.
        payload: what a prompt brings besides tokens, as JSON.
    """

    tokens: NDArray[np.int32]
    weight: NDArray[np.floating]
    example: int
    source: int
    group: int
    line: int
    label: int = -1
    file: int = 0
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One source that the store was made from.

    Args:
        file: its name: a path, an address, or what it is called in a registry.
        split: `train` or `validation`.
        first_example: number of its first example; its examples are numbered on from there.
        examples: how many examples were read from it, dropped ones included.
        counts: named counts of the build, of this source alone.
        files: its files, as the column `file` counts them.
    """

    file: str
    split: str
    first_example: int
    examples: int
    counts: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a store says about itself.

    Args:
        key: content address of the store (see `data.store_cache`).
        stage: `sft`, `pt` ….
        template: name of the chat template, None without one.
        max_length: longest segment, in tokens.
        segments: S.
        tokens: N.
        sources: what it was made from, in the order of the `source` column.
        counts: named counts of the build over all sources (see `data.pipeline.COUNTED`).
        rungs: rung of the mask ladder → segments that were masked by it.
        bad: what was wrong with the rows that were skipped, one line for each kind.
        places: of what is counted as `empty` and `letters`, the first place.
        payload: bytes of all payloads.
        version: format version.
    """

    key: str
    stage: str
    template: str | None
    max_length: int
    segments: int
    tokens: int
    sources: tuple[SourceInfo, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    rungs: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    payload: int = 0
    version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> Header:
        """Read `folder/header.json`.

        Raises:
            UserError: there is none, or it is of another format version.
        """
        try:
            raw: dict[str, Any] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise UserError("this is not a token store", where=str(folder)) from error
        if (version := raw.get("version")) != FORMAT_VERSION:
            raise UserError(
                f"the token store has format version {version}, this Luthier reads version {FORMAT_VERSION}",
                where=str(folder),
                hint="Delete the folder; the store is made anew from the data.",
            )
        sources = tuple(SourceInfo(**{**source, "files": tuple(source["files"])}) for source in raw["sources"])
        return cls(**{**raw, "sources": sources, "bad": tuple(raw.get("bad", ()))})


class TokenStore:
    """A store on disk, memory-mapped and read-only. `len(store)` counts segments.

    Attributes:
        folder: where it lies.
        header: what it says about itself.
        tokens, weight, offsets, example, source, group, file, line, label, payload_ends, payload: the columns, as described above.
    """

    tokens: NDArray[np.int32]
    weight: NDArray[np.float16]
    offsets: NDArray[np.int64]
    example: NDArray[np.int32]
    source: NDArray[np.int16]
    group: NDArray[np.int32]
    file: NDArray[np.int32]
    line: NDArray[np.int32]
    label: NDArray[np.int8]
    payload_ends: NDArray[np.int64]
    payload: NDArray[np.uint8]

    def __init__(self, folder: Path, header: Header, columns: Mapping[str, NDArray[Any]]) -> None:
        self.folder, self.header = folder, header
        for name in COLUMNS:
            setattr(self, name, columns[name])

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Map the store in `folder`.

        Raises:
            UserError: the folder is no store, is of another version, or a column has not the size that the header says.
        """
        header = Header.read(folder)
        return cls(folder, header, {name: _map(folder, name, _rows(name, header)) for name in COLUMNS})

    def __len__(self) -> int:
        return self.header.segments

    @property
    def key(self) -> str:
        """The store's content address."""
        return self.header.key

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each segment, int64 [S]."""
        return np.diff(self.offsets)

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """Supervised tokens of each segment, int64 [S]."""
        before = np.concatenate([[0], np.cumsum(self.weight != 0, dtype=np.int64)])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    @cached_property
    def source_names(self) -> list[str]:
        """A short name for each source, for metrics and reports."""
        return _short_names([source.file for source in self.header.sources])

    def segment(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        """Tokens int32 [T] and weights float16 [T] of one segment, as views of the map."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[span], self.weight[span]

    def brought(self, index: int) -> dict[str, Any]:
        """What segment `index` brought besides tokens; empty for all but prompts."""
        begin = int(self.payload_ends[index - 1]) if index else 0
        raw = self.payload[begin : int(self.payload_ends[index])].tobytes()
        found: dict[str, Any] = json.loads(raw) if raw else {}
        return found

    def name_sources(self, names: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Call the sources and their files by these names, in their order: the same content may lie elsewhere than it did.

        Args:
            names: of each source, and of the first of its files; those that are not named keep their names.
        """
        named = tuple(
            replace(source, file=name, files=(*files, *source.files[len(files) :]))
            for source, (name, files) in zip(self.header.sources, names, strict=True)
        )
        self.header = replace(self.header, sources=named)
        self.__dict__.pop("source_names", None)

    def origin(self, index: int) -> str:
        """`file:line` of the example that segment `index` was made from."""
        source, file = self.header.sources[int(self.source[index])], int(self.file[index])
        return f"{source.files[file] if file < len(source.files) else source.file}:{int(self.line[index])}"


def memory_store(header: Header, columns: Mapping[str, Any]) -> TokenStore:
    """A store that lies in memory, without payload unless it is given; its header is completed by the sizes."""
    none = {"payload_ends": np.zeros(len(columns["source"])), "payload": []}
    typed = {name: np.asarray((none | dict(columns))[name], dtype=dtype) for name, dtype in COLUMNS.items()}
    rows, tokens, payload = (len(typed[name]) for name in ("source", "tokens", "payload"))
    return TokenStore(Path(), replace(header, segments=rows, tokens=tokens, payload=payload), typed)


def empty_store(stage: str, max_length: int) -> TokenStore:
    """A store of nothing, for a run that learns from streams and measures nothing."""
    header = Header("none", stage, None, max_length, 0, 0, ())
    return memory_store(header, {name: [0] if name == "offsets" else [] for name in COLUMNS})


def _short_names(files: Sequence[str]) -> list[str]:
    """The name of each file without folder and endings, numbered where several have the same."""
    stems = [Path(file).name.split(".")[0] or file for file in files]
    return [stem if stems.count(stem) == 1 else f"{stem}-{stems[: n + 1].count(stem)}" for n, stem in enumerate(stems)]


def _rows(name: str, header: Header) -> int:
    if name in PER_TOKEN:
        return header.tokens
    if name == "payload":
        return header.payload
    return header.segments + (name == "offsets")


def _map(folder: Path, name: str, rows: int) -> NDArray[Any]:
    """Map one column; an empty file cannot be mapped, so an empty column is an empty array."""
    path, dtype = folder / f"{name}.bin", np.dtype(COLUMNS[name])
    size = path.stat().st_size if path.is_file() else -1
    if size != rows * dtype.itemsize:
        raise UserError(
            f"column `{name}` has {size} bytes instead of {rows * dtype.itemsize}",
            where=str(folder),
            hint="Delete the folder; the store is made anew from the data.",
        )
    return np.memmap(path, dtype, mode="r") if rows else np.zeros(0, dtype)


class StoreWriter:
    """Writes a store into `folder`, a batch of segments at a time; nothing but the current batch is held in memory.

    Use it as a context manager and end with `close`; until `close` has written the header, the folder is not a store.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.segments = self.tokens = self.payload = 0
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("wb") for name in COLUMNS}
        self._put("offsets", [0])

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, segments: Iterable[Segment]) -> None:
        """Append segments, in order."""
        batch = list(segments)
        if not batch:
            return
        self._put("tokens", np.concatenate([segment.tokens for segment in batch]))
        faults.point("store.mid-write")
        self._put("weight", np.concatenate([segment.weight for segment in batch]))
        ends = self.tokens + np.cumsum([len(segment.tokens) for segment in batch])
        self._put("offsets", ends)
        for name in PER_SEGMENT:
            self._put(name, [getattr(segment, name) for segment in batch])
        payload_ends = self.payload + np.cumsum([len(segment.payload) for segment in batch])
        self._put("payload_ends", payload_ends)
        self._put("payload", np.frombuffer(b"".join(segment.payload for segment in batch), np.uint8))
        self.segments += len(batch)
        self.tokens, self.payload = int(ends[-1]), int(payload_ends[-1])

    def close(self, header: Header) -> None:
        """Flush the columns and write the header, which makes the folder a store."""
        for file in self._files.values():
            file.close()
        if (header.segments, header.tokens, header.payload) != (self.segments, self.tokens, self.payload):
            raise ValueError("the header does not count what was written")
        write_json(self.folder / HEADER, asdict(header))

    def _put(self, name: str, values: Any) -> None:
        self._files[name].write(np.ascontiguousarray(values, dtype=COLUMNS[name]).data)
