"""What a recipe may name as a source, and which files that is: folders, patterns, packed files, addresses, hubs, own code."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fsspec
import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import errors

from luthier.data.problems import RowProblem
from luthier.data.remote_hub import Wanted, choose
from luthier.data.sources import _far_parts, digest_of, parts_of, rows_of, title_of
from luthier.errors import UserError
from luthier.recipe.load import recipe_from
from luthier.recipe.schema import Source

ROWS = [{"text": "one"}, {"text": "two"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    _far_parts.cache_clear()


def rows(**options: Any) -> list[Any]:
    return [row for _, row in rows_of(Source(**options))]


def texts(**options: Any) -> list[str]:
    return [row["text"] for row in rows(**options)]


def test_a_folder_gives_its_data_files_in_order_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    (folder / "b").mkdir(parents=True)
    for name, text in (
        ("b/2.jsonl", "2"),
        ("1.jsonl", "1"),
        ("README.md", ""),
        (".hidden.jsonl", "h"),
        ("dataset_info.json", "d"),
    ):
        (folder / name).write_text(json.dumps({"text": text}) + "\n")
    assert texts(path=str(folder)) == ["1", "2"]
    assert [origin.line for origin, _ in rows_of(Source(path=str(folder)))] == [1, 1]
    assert [row["text"] for row in rows(path=str(folder / "**/*.jsonl"))] == ["1", "2"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no data file in this folder"):
        rows(path=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no file fits this pattern"):
        rows(path=str(tmp_path / "*.csv"))


def test_packed_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    packed = pyarrow.compress(LINES.encode(), codec="zstd", asbytes=True)
    (tmp_path / "b.jsonl.zst").write_bytes(packed + packed)
    assert texts(path=str(tmp_path / "a.jsonl.gz")) == ["one", "two"]
    assert texts(path=str(tmp_path / "b.jsonl.zst")) == ["one", "two"] * 2
    (tmp_path / "c.txt.zst").write_bytes(packed[:-4])
    with pytest.raises(UserError, match="Zstandard data is damaged"):
        rows(path=str(tmp_path / "c.txt.zst"))


def test_documents_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("1\n2\n\n3\n")
    assert texts(path=str(file), documents="line") == ["1", "2", "3"]
    assert texts(path=str(file)) == texts(path=str(file), documents="paragraph") == ["1\n2", "3"]
    assert texts(path=str(file), documents="file") == ["1\n2\n\n3"]


def test_a_table_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('Hi.\t嗨。\n"Run" he said.\t跑。\n"a\tb"\t"c"\n')
    source = Source(path=str(tmp_path / "a.tsv"), columns={"question": 1, "answer": 2})  # type: ignore[dict-item]
    found = [row for _, row in rows_of(source)]
    assert found == [{"1": "Hi.", "2": "嗨。"}, {"1": '"Run" he said.', "2": "跑。"}, {"1": "a\tb", "2": "c"}]


def test_addresses_are_fetched_once_and_again_when_they_change(tmp_path: Path) -> None:
    disk = fsspec.filesystem("memory")
    disk.pipe("/bucket/a.jsonl", LINES.encode())
    disk.pipe("/bucket/deep/b.jsonl", b'{"text": "three"}\n')
    disk.pipe("/bucket/notes.md", b"no data")
    assert texts(path="memory://bucket/a.jsonl") == ["one", "two"]
    assert texts(path="memory://bucket") == ["one", "two", "three"]
    assert texts(path="memory://bucket/*.jsonl") == ["one", "two"]
    before = digest_of(Source(path="memory://bucket/a.jsonl"))
    _far_parts.cache_clear()
    disk.pipe("/bucket/a.jsonl", b'{"text": "new"}\n')
    assert texts(path="memory://bucket/a.jsonl") == ["new"]
    assert digest_of(Source(path="memory://bucket/a.jsonl")) != before
    assert title_of(Source(path="memory://bucket/a.jsonl")) == "memory://bucket/a.jsonl"
    with pytest.raises(UserError, match="there is nothing at this address"):
        rows(path="memory://elsewhere/a.jsonl")
    with pytest.raises(UserError, match="no such kind of address"):
        rows(path="gopher://x/a.jsonl")


FILES = [
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
]
CARD = {
    "configs": [
        {
            "config_name": "en",
            "data_files": [{"split": "train", "path": "en/train*"}, {"split": "test", "path": ["en/test.jsonl"]}],
        },
        {"config_name": "zh", "data_files": "zh/*.jsonl"},
    ]
}
LANGUAGES = ["en/train.jsonl", "en/test.jsonl", "zh/a.jsonl", "zh/b.jsonl"]


@pytest.mark.parametrize(
    ("files", "card", "wanted", "chosen"),
    [
        (FILES, None, {}, FILES[1:3]),
        (FILES, None, {"split": "test"}, FILES[3:]),
        (["a.jsonl", "b.csv", "setup.py"], None, {}, ["a.jsonl", "b.csv"]),
        (["dev.json", "train.json"], None, {"split": "validation"}, ["dev.json"]),
        (["train_sft.jsonl", "train_gen.jsonl"], None, {"split": "train_sft"}, ["train_sft.jsonl"]),
        (["a/train.jsonl.gz", "a/test.jsonl.gz", "b/train.jsonl.gz"], None, {"folder": "a"}, ["a/train.jsonl.gz"]),
        (LANGUAGES, CARD, {"subset": "en"}, ["en/train.jsonl"]),
        (LANGUAGES, CARD, {"subset": "en", "split": "test"}, ["en/test.jsonl"]),
        (LANGUAGES, CARD, {"subset": "zh"}, ["zh/a.jsonl", "zh/b.jsonl"]),
        (["en/0000.parquet", "zh/0000.parquet"], None, {"subset": "zh"}, ["zh/0000.parquet"]),
    ],
)  # fmt: skip
def test_the_files_of_a_subset_and_split(files: list[str], card: Any, wanted: dict[str, str], chosen: list[str]) -> None:
    assert choose("o/n", files, card, Wanted(None, **{"subset": None, "split": None, "folder": None, **wanted})) == chosen


@pytest.mark.parametrize(
    ("files", "card", "wanted", "said"),
    [
        (FILES, None, {"split": "validation"}, "there is no split `validation`. There are: test, train."),
        (["test.jsonl"], None, {}, "there is no split `train`. There are: test."),
        (LANGUAGES, CARD, {}, "has several subsets. Set `subset` to one of: en, zh."),
        (LANGUAGES, CARD, {"subset": "e"}, "there is no subset `e`"),
        (LANGUAGES, CARD, {"subset": "en", "split": "dev"}, "there is no split `dev`. There are: test, train."),
        (LANGUAGES, None, {"folder": "fr"}, "there is no data in the folder `fr`"),
    ],
)
def test_what_a_data_set_does_not_have_is_said(files: list[str], card: Any, wanted: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        choose("o/n", files, card, Wanted(None, **{"subset": None, "split": None, "folder": None, **wanted}))
    assert str(caught.value).startswith(f"o/n: {said}")


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path, revisions: dict[str | None, list[str]]) -> list[str]:
    """Hugging Face's library in front of a folder; gives the list of files that were fetched."""
    fetched: list[str] = []

    def dataset_info(_self: Any, name: str, revision: str | None = None) -> Any:
        if name != "owner/name" or revision not in revisions:
            error = errors.RepositoryNotFoundError if name != "owner/name" else errors.RevisionNotFoundError
            raise error("no", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        siblings = [SimpleNamespace(rfilename=file) for file in revisions[revision]]
        return SimpleNamespace(siblings=siblings, sha=f"commit-{revision}", card_data=None)

    def download(name: str, file: str, *, repo_type: str, revision: str) -> str:
        assert (name, repo_type, revision[:7]) == ("owner/name", "dataset", "commit-")
        fetched.append(file)
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


def test_a_hub_s_files_are_fetched_when_their_rows_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl"):
        (tmp_path / name).write_text(LINES)
    fetched = hub(monkeypatch, tmp_path, {None: ["train-0.jsonl", "train-1.jsonl", "test-0.jsonl"]})
    source = Source(path="owner/name")
    assert digest_of(source)[1] == ["huggingface owner/name commit-None train-1.jsonl", ".jsonl"]
    stream = rows_of(source)
    assert not fetched
    assert next(stream)[1] == {"text": "one"}
    assert fetched == ["train-0.jsonl"]
    assert len(list(stream)) == 3
    assert fetched == ["train-0.jsonl", "train-1.jsonl"]
    with pytest.raises(UserError, match="no such data set on Hugging Face"):
        rows(path="owner/other")


def test_a_hub_s_files_are_read_where_they_lie_by_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = hub(monkeypatch, tmp_path, {None: ["train-0.jsonl", "train-1.jsonl"]})
    opened: list[str] = []

    def opens(_self: Any, path: str, _mode: str) -> Any:
        opened.append(path)
        return io.BytesIO(LINES.encode())

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", type("Hub", (), {"open": opens}))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    found = list(rows_of(Source(path="owner/name"), on_the_way=True))
    assert [str(origin) for origin, _ in found] == [f"owner/name/train-{part}.jsonl:{line}" for part in (0, 1) for line in (1, 2)]
    assert set(opened) == {f"datasets/owner/name@commit-None/train-{part}.jsonl" for part in (0, 1)}
    assert not fetched
    (tmp_path / "kept.jsonl").write_text('{"text": "kept"}\n')
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "kept.jsonl"))
    assert [row["text"] for _, row in rows_of(Source(path="owner/name"), on_the_way=True)] == ["kept", "kept"]
    assert parts_of(Source(path="owner/name"))[0].commit == "commit-None"


def test_a_machine_that_cannot_reach_the_hub_goes_on_with_the_commit_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train-0.jsonl").write_text(LINES)
    hub(monkeypatch, tmp_path, {None: ["train-0.jsonl"]})
    before = digest_of(Source(path="owner/name"))
    _far_parts.cache_clear()

    def unreachable(_self: Any, name: str, revision: str | None = None) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    assert digest_of(Source(path="owner/name")) == before
    assert texts(path="owner/name") == ["one", "two"]
    with pytest.raises(UserError, match=r"owner/name: .*Hugging Face cannot be reached \(no route\)"):
        rows(path="owner/name", split="test")


def test_a_loading_script_is_not_run_but_its_parquet_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, tmp_path, {None: ["name.py"], "refs/convert/parquet": ["default/train/0000.parquet"]})
    assert [part.name for part in parts_of(Source(path="owner/name"))] == ["owner/name/default/train/0000.parquet"]
    _far_parts.cache_clear()
    hub(monkeypatch, tmp_path, {None: ["name.py"]})
    with pytest.raises(UserError, match="comes as a script that loads it, and code from a hub is not run here"):
        parts_of(Source(path="owner/name"))
    hub(monkeypatch, tmp_path, {None: ["image.png"]})
    with pytest.raises(UserError, match="holds no data that is read here"):
        parts_of(Source(path="owner/name"))


def test_modelscope_gives_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def dataset_snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    library, api = ModuleType("modelscope"), ModuleType("modelscope.hub.api")
    library.dataset_snapshot_download = dataset_snapshot_download  # type: ignore[attr-defined]
    library.hub = SimpleNamespace(api=api)  # type: ignore[attr-defined]
    for module in (library, ModuleType("modelscope.hub"), api):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/*.jsonl\n---\n# Card\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.jsonl").write_text(LINES)
    (tmp_path / "other.jsonl").write_text("{}")
    assert texts(path="owner/name", hub="modelscope") == ["one", "two"]
    assert asked["name"] == "owner/name"
    assert "*.jsonl" in asked["allow_patterns"]


CODE = """
def load():
    for number in range(3):
        yield {"text": f"row {number}"}

def upper(row):
    if row["text"] == "one":
        return [{"text": "ONE"}, {"text": "UNO"}]
    return None

def broken(row):
    return row["missing"]

def nothing():
    return []
"""


def test_own_code_yields_and_maps_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(CODE)
    (tmp_path / "a.jsonl").write_text(LINES)
    code, data = f"{tmp_path}/rows.py", str(tmp_path / "a.jsonl")
    assert texts(python=f"{code}:load") == ["row 0", "row 1", "row 2"]
    assert [origin.line for origin, _ in rows_of(Source(python=f"{code}:load"))] == [1, 2, 3]
    assert texts(python=f"{code}:upper", path=data) == ["ONE", "UNO"]
    assert rows(python=f"{code}:broken", path=data)[0] == RowProblem(f"{code}:12: KeyError: 'missing'")
    before = digest_of(Source(python=f"{code}:load"))
    (tmp_path / "rows.py").write_text(CODE + "# changed\n")
    assert digest_of(Source(python=f"{code}:load")) != before
    assert len(digest_of(Source(python=f"{code}:upper", path=data))) == 2


@pytest.mark.parametrize(
    ("code", "named", "said"),
    [
        ("def load(): yield 1 +", "load", "rows.py:1: SyntaxError: invalid syntax"),
        ("import no_such_module", "load", "rows.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def lod(): ...", "load", "there is no function `load`. Did you mean `lod`?"),
        ("def load():\n    return 3", "load", "`load` gives a int, it should yield rows"),
        ("def load():\n    yield {}\n    raise ValueError('no more')", "load", "rows.py:3: ValueError: no more"),
        (CODE, "nothing", "`nothing` yields no rows"),
        (CODE, "load it", "is not `file.py:function`"),
    ],
)
def test_mistakes_in_own_code_are_one_line(tmp_path: Path, code: str, named: str, said: str) -> None:
    (tmp_path / "rows.py").write_text(code)
    with pytest.raises(UserError) as caught:
        rows(python=f"{tmp_path}/rows.py:{named}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_of_a_recipe_and_what_is_no_path(tmp_path: Path) -> None:
    def paths(*train: Any) -> list[tuple[str, str]]:
        recipe = recipe_from({"model": "tiny", "data": {"train": list(train)}}, tmp_path)
        return [(source.path, source.python) for source in recipe.data.train]

    assert paths("a.jsonl", "s3://b/c.jsonl", "owner/name-v0.1", "data/x.jsonl", "./owner/name") == [
        (f"{tmp_path}/a.jsonl", ""),
        ("s3://b/c.jsonl", ""),
        ("owner/name-v0.1", ""),
        (f"{tmp_path}/data/x.jsonl", ""),
        (f"{tmp_path}/owner/name", ""),
    ]
    assert paths({"path": "imdb", "hub": "huggingface"}, {"python": "rows.py:load"}) == [
        ("imdb", ""),
        ("", f"{tmp_path}/rows.py:load"),
    ]
    (tmp_path / "owner/name").mkdir(parents=True)
    assert paths("owner/name") == [(f"{tmp_path}/owner/name", "")]
    with pytest.raises(UserError, match="a source needs `path`, `name` or `python`"):
        paths({"format": "text"})
    with pytest.raises(UserError, match="give `path` or `name`, not both"):
        paths({"path": "a.jsonl", "name": "b"})
