"""Data sets by name: our own registry, LLaMA-Factory's as it is, and the one that ships."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.data.examples import Conversation, Document, Feedback, Preference
from luthier.data.formats import FORMATS
from luthier.data.problems import Problems
from luthier.data.read_examples import read_examples
from luthier.data.registry import SHIPPED, add, entries, find, resolve
from luthier.data.registry_entry import KINDS
from luthier.data.registry_llamafactory import COLUMNS, TAGS
from luthier.errors import UserError
from luthier.recipe.schema import Source


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("USE_MODELSCOPE_HUB", raising=False)
    return tmp_path


def written(file: Path, values: Any) -> str:
    file.write_text(json.dumps(values) if file.suffix == ".json" else yaml.safe_dump(values), "utf-8")
    return str(file)


def test_an_own_entry_becomes_a_source(place: Path) -> None:
    (place / "sets").mkdir()
    (place / "sets/shop.csv").write_text("ask,reply\nq,a\n")
    entry = {"path": "shop.csv", "format": "qa", "columns": {"question": "ask", "answer": "reply"}, "licence": "own"}
    registry = written(place / "sets/datasets.yaml", {"shop": entry})
    source = resolve(Source(name="shop", weight=2), registry=registry)
    assert (source.path, source.format, source.weight, source.name) == (str(place / "sets/shop.csv"), "qa", 2, "shop")
    [example] = read_examples(source, Problems(), stage="sft")
    assert isinstance(example, Conversation)
    assert [message["content"] for message in example.messages] == ["q", "a"]
    own = resolve(Source(name="shop", columns={"answer": "ask"}), registry=registry)
    assert (own.format, own.columns) == ("qa", {"question": "ask", "answer": "ask"})
    other = resolve(Source(name="shop", columns={"output": "ask"}, format="alpaca"), registry=registry)
    assert (other.format, other.columns) == ("alpaca", {"output": "ask"})


def test_names_are_looked_up_in_order(place: Path) -> None:
    written(place / "datasets.yaml", {"gsm8k": {"path": "mine.jsonl"}, "both": {"path": "here.jsonl"}})
    given = written(place / "other.yaml", {"both": {"path": "given.jsonl"}})
    assert resolve(Source(name="gsm8k")).path == str(place / "mine.jsonl")
    assert resolve(Source(name="both")).path == str(place / "here.jsonl")
    assert resolve(Source(name="both"), registry=given).path == str(place / "given.jsonl")
    assert resolve(Source(name="dolly_15k")).path == "databricks/databricks-dolly-15k"
    with pytest.raises(UserError, match=r"no data set `doly_15k` in the registry\. Did you mean `dolly_15k`"):
        resolve(Source(name="doly_15k"))


def test_a_changed_file_is_refused(place: Path) -> None:
    (place / "a.jsonl").write_text('{"text": "x"}\n')
    digest = hashlib.sha256((place / "a.jsonl").read_bytes()).hexdigest()
    written(place / "datasets.yaml", {"a": {"path": "a.jsonl", "sha256": digest}})
    assert resolve(Source(name="a")).path.endswith("a.jsonl")
    (place / "a.jsonl").write_text('{"text": "y"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: has changed: its sha256 is .* the registry says"):
        resolve(Source(name="a"))


def test_the_hub_is_the_one_asked_for_or_the_one_it_is_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(place / "datasets.yaml", {"both": {"huggingface": "h/x", "modelscope": "m/x"}, "one": {"modelscope": "m/y"}})

    def where(name: str, hub: Any = "auto") -> tuple[str, str]:
        source = resolve(Source(name=name, hub=hub))
        return source.path, source.hub

    assert where("both") == ("h/x", "huggingface")
    assert where("both", "modelscope") == ("m/x", "modelscope")
    assert where("one") == ("m/y", "modelscope")
    with pytest.raises(UserError, match=r"`one` is not known to be on this hub\. Set `hub: modelscope`"):
        where("one", "huggingface")
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert where("both") == ("m/x", "modelscope")
    assert where("dolly_15k") == ("databricks/databricks-dolly-15k", "huggingface")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"a": {"pth": "x"}}, r"datasets\.yaml: a: unknown key `pth`\. Did you mean `path`"),
        ({"a": {"format": "alpaca"}}, "a: says nowhere where it lies"),
        ({"a": {"path": "x", "format": "alpca"}}, r"a: `format`: Input should be"),
        ({"a": "x"}, "a: should be a mapping"),
        (["a"], "should map names to data sets"),
    ],
)
def test_mistakes_in_an_own_registry(place: Path, values: Any, said: str) -> None:
    written(place / "datasets.yaml", values)
    with pytest.raises(UserError, match=said):
        entries()


def test_broken_registries(place: Path) -> None:
    (place / "a.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=r"a\.yaml:2: is not YAML"):
        entries("a.yaml")
    (place / "b.json").write_text("{\n  oops")
    with pytest.raises(UserError, match=r"b\.json:2: is not JSON"):
        entries("b.json")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        entries("none.yaml")


def test_add_keeps_what_is_there(place: Path) -> None:
    file = place / "datasets.yaml"
    file.write_text("# mine\nold: {path: a.jsonl}  # kept\n")
    add({"path": "b.jsonl", "format": "text", "about": "新的"}, "new", file)
    assert file.read_text("utf-8").startswith("# mine\nold: {path: a.jsonl}  # kept\n\nnew:\n")
    assert find("new").about == "新的"
    assert find("old").path == str(place / "a.jsonl")
    with pytest.raises(UserError, match="`new` stands there already"):
        add({"path": "b.jsonl"}, "new", file)
    with pytest.raises(UserError, match="`format`: Input should be"):
        add({"path": "b.jsonl", "format": "nope"}, "newer", file)
    assert "newer" not in file.read_text("utf-8")


def dataset_info(place: Path, **entry: Any) -> Source:
    return resolve(Source(name="x"), registry=written(place / "dataset_info.json", {"x": entry}))


def test_a_column_that_is_not_named_keeps_its_default(place: Path) -> None:
    (place / "a.json").write_text(json.dumps([{"ask": "q", "output": "a", "input": "i", "history": [["b", "c"]]}]))
    source = dataset_info(place, file_name="a.json", columns={"prompt": "ask", "system": "none"})
    assert (source.format, source.columns) == ("alpaca", {"instruction": "ask", "system": "none"})
    [example] = read_examples(source, Problems(), stage="sft")
    assert isinstance(example, Conversation)
    assert [message["content"] for message in example.messages] == ["b", "c", "q\ni", "a"]
    (place / "b.json").write_text(json.dumps([{"conversations": [{"who": "human", "value": "q"}, {"who": "gpt", "value": "a"}]}]))
    source = dataset_info(place, file_name="b.json", formatting="sharegpt", tags={"role_tag": "who"})
    assert len(list(read_examples(source, Problems(), stage="sft"))) == 1


def test_every_field_of_an_entry(place: Path) -> None:
    source = dataset_info(
        place,
        hf_hub_url="h/x",
        ms_hub_url="m/x",
        script_url="ignored",
        file_name="ignored.json",
        formatting="sharegpt",
        ranking=True,
        subset="en",
        split="train_prefs",
        folder="data",
        num_samples=7,
        columns={name: f"my_{name}" for name in COLUMNS["sharegpt"]},
        tags={name: f"my_{name}" for name in TAGS},
    )
    assert (source.path, source.hub, source.subset, source.split, source.folder) == (
        "h/x",
        "huggingface",
        "en",
        "train_prefs",
        "data",
    )
    assert (source.format, source.max_examples) == ("sharegpt", 7)
    assert source.columns == {ours: f"my_{theirs}" for theirs, ours in [*COLUMNS["sharegpt"].items(), *TAGS.items()]}
    assert set(source.columns) <= set(FORMATS["sharegpt"].COLUMNS)
    assert set(COLUMNS["alpaca"].values()) <= set(FORMATS["alpaca"].COLUMNS)
    assert dataset_info(place, cloud_file_name="s3://b/a.jsonl").path == "s3://b/a.jsonl"
    assert dataset_info(place, file_name="folder").path == str(place / "folder")


def test_own_tags_are_roles(place: Path) -> None:
    turns = [{"role": "ask", "text": "q"}, {"role": "call", "text": '{"name": "f", "arguments": {}}'}]
    turns += [{"role": "back", "text": "1"}, {"role": "say", "text": "a"}]
    (place / "a.json").write_text(json.dumps([{"conversations": turns}]))
    tags = {"role_tag": "role", "content_tag": "text", "user_tag": "ask", "assistant_tag": "say"}
    tags |= {"observation_tag": "back", "function_tag": "call"}
    source = dataset_info(
        place, file_name="a.json", formatting="sharegpt", tags={**tags, "observation_tag": "back", "function_tag": "call"}
    )
    [example] = read_examples(source, Problems(), stage="sft")
    assert isinstance(example, Conversation)
    assert [message["role"] for message in example.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"script_url": "loader"},
            r"x: is a script that loads the data \(`script_url`\), which would run code; load it yourself",
        ),
        ({"om_hub_url": "o/x"}, "lies on openMind only"),
        ({"formatting": "sharegpt"}, "says nowhere where it lies"),
        ({"file_name": "a.json", "columns": {"prompt": "q", "images": "pictures"}}, "holds images; only text is read"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_used(place: Path, entry: Any, said: str) -> None:
    registry = written(place / "dataset_info.json", {"x": entry, "good": {"file_name": "a.json"}})
    assert entries(registry)["good"].path
    with pytest.raises(UserError, match=said):
        resolve(Source(name="x"), registry=registry)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"file_nam": "a.json"}, "x: unknown key `file_nam`. Did you mean `file_name`"),
        ({"file_name": "a.json", "columns": {"promt": "q"}}, "x: unknown column `promt`. Did you mean `prompt`"),
        ({"file_name": "a.json", "tags": {"rol_tag": "q"}}, "x: unknown tag `rol_tag`. Did you mean `role_tag`"),
        ({"file_name": "a.json", "formatting": "sharegtp"}, "x: unknown formatting `sharegtp`. Did you mean `sharegpt`"),
    ],
)
def test_mistakes_in_a_dataset_info(place: Path, entry: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        dataset_info(place, **entry)
    assert said in str(caught.value)


def test_a_changed_file_of_a_dataset_info_is_refused(place: Path) -> None:
    (place / "a.json").write_text("[]")
    assert dataset_info(place, file_name="a.json", file_sha1=hashlib.sha1(b"[]").hexdigest()).path
    with pytest.raises(UserError, match="has changed: its sha1"):
        dataset_info(place, file_name="a.json", file_sha1="0" * 40)


@pytest.mark.parametrize(
    ("name", "stage", "kind", "count"),
    [
        ("identity", "sft", Conversation, 91),
        ("alpaca_en_demo", "sft", Conversation, 899),
        ("alpaca_zh_demo", "sft", Conversation, 900),
        ("glaive_toolcall_en_demo", "sft", Conversation, 240),
        ("glaive_toolcall_zh_demo", "sft", Conversation, 240),
        ("dpo_en_demo", None, Preference, 240),
        ("dpo_zh_demo", None, Preference, 240),
        ("kto_en_demo", None, Feedback, 240),
        ("wiki_demo", "pt", Document, 30),
        ("c4_demo", "pt", Document, 300),
    ],
)
def test_llama_factory_s_own_file_and_demo_data(shared: Path, name: str, stage: str | None, kind: type, count: int) -> None:
    registry = str(shared / "data/llamafactory/dataset_info.json")
    examples = list(read_examples(resolve(Source(name=name), registry=registry, stage=stage), Problems(), stage=stage))
    assert len(examples) == count
    assert {type(example) for example in examples} == {kind}


def test_every_entry_of_llama_factory_s_file_is_understood(shared: Path) -> None:
    registry = str(shared / "data/llamafactory/dataset_info.json")
    names = json.loads(Path(registry).read_text("utf-8"))
    refused = {name for name, entry in entries(registry).items() if name in names and entry.refused}
    media = {name for name, entry in names.items() if {"images", "videos", "audios"} & set(entry.get("columns", ()))}
    assert refused == media
    for name in set(names) - refused:
        source = resolve(Source(name=name), registry=registry, stage="sft")
        assert source.path
        assert set(source.columns) <= set(FORMATS[source.format].COLUMNS)


def test_the_shipped_registry(place: Path) -> None:
    shipped = entries()
    assert len(shipped) >= 60
    assert {entry.kind for entry in shipped.values()} == set(KINDS)
    for name, entry in shipped.items():
        source = resolve(Source(name=name))
        assert source.path == (entry.huggingface or entry.modelscope), name
        assert not source.columns or set(source.columns) <= set(FORMATS[source.format].COLUMNS), name
        assert entry.licence, name
        assert entry.languages, name
    for kind in ("pretraining", "sft", "preference"):
        for language in ("en", "zh"):
            assert any(entry.kind == kind and language in entry.languages for entry in shipped.values())
    raw = yaml.safe_load(SHIPPED.read_text("utf-8"))
    assert len(raw) == len(shipped)
