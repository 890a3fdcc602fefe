"""The catalogue is whole and says nothing twice; names are found however they are typed, and lead to the hub that has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

import luthier
from luthier.chat import resolve
from luthier.chat.families import families as chat_families
from luthier.errors import UserError
from luthier.models import catalog, hub
from luthier.models.catalog import NOTES, entries, find, get, similar, template_of
from luthier.models.source import find_source
from luthier.recipe.load import load_recipe
from tests.families import save
from tests.workspace import Workspace

ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MISSION = {
    "baichuan": ["7B", "13B"],
    "baichuan2": ["7B", "13B"],
    "bloom": ["560M", "1.1B", "1.7B", "3B", "7.1B", "176B"],
    "bloomz": ["560M", "1.1B", "1.7B", "3B", "7.1B", "176B"],
    "chatglm2": ["6B"],
    "chatglm3": ["6B"],
    "glm4": ["9B"],
    "deepseek-llm": ["7B", "67B"],
    "deepseek-moe": ["16.4B"],
    "deepseek-v2": ["15.7B", "236B"],
    "deepseek-v3": ["671B"],
    "falcon": ["7B", "40B", "180B"],
    "gemma": ["2B", "7B"],
    "gemma2": ["2B", "9B", "27B"],
    "gemma3": ["270M", "1B", "4B", "12B", "27B"],
    "internlm": ["7B", "20B"],
    "internlm2": ["1.8B", "7B", "20B"],
    "internlm2.5": ["1.8B", "7B", "20B"],
    "internlm3": ["8B"],
    "llama": ["7B", "13B", "33B", "65B"],
    "llama2": ["7B", "13B", "70B"],
    "llama3": ["8B", "70B"],
    "mistral": ["7B"],
    "mixtral": ["46.7B", "141B"],
    "opt": ["125M", "350M", "1.3B", "2.7B", "6.7B", "13B", "30B", "66B"],
    "gpt2": ["124M", "355M", "774M", "1.5B"],
    "phi": ["1.3B", "2.7B"],
    "phi3": ["3.8B", "7B", "14B"],
    "phi4": ["14B"],
    "qwen1": ["1.8B", "7B", "14B", "72B"],
    "qwen1.5": ["0.5B", "1.8B", "4B", "7B", "14B", "32B", "72B", "110B", "14.3B"],
    "qwen2": ["0.5B", "1.5B", "7B", "57B", "72B"],
    "qwen2.5": ["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"],
    "qwen3": ["0.6B", "1.7B", "4B", "8B", "14B", "32B", "30.5B", "235B"],
    "xverse": ["7B", "13B", "65B"],
    "yi": ["6B", "34B"],
    "yuan2": ["2B", "51B", "102B"],
    "smollm2": ["135M", "360M", "1.7B"],
    "minicpm": ["1B", "2B"],
    "olmo": ["1B", "7B"],
    "xgen": ["7B"],
}
"""Families that Luthier was asked to know, with the sizes that they were published in."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("USE_MODELSCOPE_HUB", raising=False)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What would be fetched: (hub, id)."""
    record: list[tuple[str, str]] = []

    def stand_in(name: str) -> Any:
        def fetched(id_: str, revision: str | None, *, asked: str) -> Path:
            record.append((name, id_))
            return tmp_path

        return fetched

    monkeypatch.setattr(hub, "_from_huggingface", stand_in("huggingface"))
    monkeypatch.setattr(hub, "_from_modelscope", stand_in("modelscope"))
    return record


@pytest.mark.parametrize("family", MISSION)
def test_every_size_of_the_families_is_there(family: str) -> None:
    assert set(MISSION[family]) <= {entry.size for entry in entries().values() if entry.family == family}


def test_every_entry_is_well_formed() -> None:
    known = entries()
    assert len(known) >= 400
    for name, entry in known.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
        assert entry.huggingface or entry.modelscope, name
        assert all(ID.fullmatch(id_) for id_ in (entry.huggingface, entry.modelscope) if id_), name
        assert re.fullmatch(r"[\d.]+[MB]", entry.size), name
        assert (not entry.active) == ("moe" not in entry.notes), name
        assert not entry.template or entry.template in chat_families(), name
        assert entry.kind == "chat" or not entry.template, name


def test_every_note_and_every_licence_is_used_or_known() -> None:
    used = {note for entry in entries().values() for note in entry.notes}
    assert used == set(NOTES)
    assert list(NOTES) == sorted(NOTES)
    assert all(entry.licence for entry in entries().values())


def test_no_two_entries_mean_the_same_model() -> None:
    for place in ("huggingface", "modelscope"):
        ids = [id_.lower() for entry in entries().values() if (id_ := getattr(entry, place))]
        assert len(ids) == len(set(ids)), sorted(id_ for id_ in ids if ids.count(id_) > 1)
    assert len({name.replace("_", "-") for name in entries()}) == len(entries())


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("qwen2.5-0.5b-instruct", "qwen2.5-0.5b-instruct"),
        ("Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("Qwen-1_8B-Chat-Int4", "qwen-1.8b-chat-int4"),
        ("internlm2_5-7b-chat", "internlm2.5-7b-chat"),
        ("Llama-2-7b-chat-hf", "llama-2-7b-chat"),
        ("NousResearch/Llama-2-7b-chat-hf", "llama-2-7b-chat-nous"),
        ("zhipuai/chatglm3-6b", "chatglm3-6b"),
    ],
)
def test_names_are_found_however_they_are_typed(typed: str, name: str) -> None:
    assert get(typed).name == name


def test_an_unknown_name_gets_the_nearest() -> None:
    assert similar("qwen2.5-0.5b-instrct")[0] == "qwen2.5-0.5b-instruct"
    with pytest.raises(
        UserError, match=r"^chatglm-6b: no such folder, and no model .* Did you mean `chatglm\d-6b` or "
    ) as caught:
        get("chatglm-6b")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"catalogue\. `luthier models list` shows all names"):
        get("zzzzzzzzzzzz")


def test_a_name_is_fetched_from_the_hub_that_has_it(asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fetch("gemma-2-2b-it")
    hub.fetch("gemma-2-2b-it", hub="modelscope")
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    hub.fetch("gemma-2-2b-it")
    hub.fetch("opt-125m")  # not known to be on ModelScope
    hub.fetch("Owner/Unknown")
    google, research = ("huggingface", "google/gemma-2-2b-it"), ("modelscope", "LLM-Research/gemma-2-2b-it")
    assert asked == [google, research, research, ("huggingface", "facebook/opt-125m"), ("modelscope", "Owner/Unknown")]
    with pytest.raises(UserError, match=r"`opt-125m` is not known to be on this hub. Set `hub: huggingface`"):
        hub.fetch("opt-125m", hub="modelscope")


def test_failures_name_what_was_typed_and_the_page_to_ask_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*_args: Any, **_kwargs: Any) -> str:
        raise huggingface_hub.errors.GatedRepoError("gated", response=response)

    response: Any = type("Response", (), {"headers": {}, "request": None})()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    with pytest.raises(UserError, match=r"^llama-2-7b-chat: this model is gated.*huggingface.co/meta-llama/Llama-2-7b-chat-hf"):
        hub.fetch("llama-2-7b-chat")


def test_what_needs_code_from_the_hub_is_refused_before_it_is_fetched(asked: list[tuple[str, str]]) -> None:
    with pytest.raises(UserError, match="runs only with code from its hub"):
        hub.fetch("minicpm-2b-sft")
    assert not asked


def test_a_folder_goes_before_the_catalogue(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    (tmp_path / "gpt2").mkdir()
    assert hub.fetch("gpt2") == tmp_path / "gpt2"
    assert not asked
    assert template_of("gpt2") == ""


def test_own_names_go_before_ours_and_are_read_anew_when_they_change(tmp_path: Path) -> None:
    model = save("llama", tmp_path / "models" / "shop")
    catalog.add({"path": "models/shop", "template": "qwen2.5"}, "shop", tmp_path / "models.yaml")
    assert hub.fetch("shop") == model
    assert template_of("shop") == "qwen2.5"
    (tmp_path / "models.yaml").write_text("# mine\ngpt2: {both: our/gpt2, licence: own}\n")
    assert (get("gpt2").huggingface, get("gpt2").licence, find("shop")) == ("our/gpt2", "own", None)
    assert get("our/gpt2").name == "gpt2"
    catalog.add({"huggingface": "our/other"}, "other", tmp_path / "models.yaml")
    assert (tmp_path / "models.yaml").read_text().startswith("# mine\n")
    assert [name for name in entries() if entries()[name].registry == "models.yaml"] == ["gpt2", "other"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("x: {huggingfce: a/b}", r"models\.yaml: x: unknown key `huggingfce`. Did you mean `huggingface`"),
        ("x: {template: qwen3}", "says nowhere where it lies"),
        ("x: {both: a/b, notes: [gate]}", "unknown note `gate`. Did you mean `gated`"),
        ("x: {both: a/b, context: long}", "a number of tokens"),
        ("x: a/b", "should map names to models"),
        ("x: {", r"models\.yaml:\d+: is not YAML"),
    ],
)
def test_mistakes_in_an_own_catalogue_are_one_line(written: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(written)
    with pytest.raises(UserError, match=said) as caught:
        get("gpt2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "tiny", "./x"])
def test_what_means_something_else_cannot_be_a_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name a model"):
        catalog.add({"both": "a/b"}, name, tmp_path / "models.yaml")
    assert not (tmp_path / "models.yaml").exists()


def test_a_name_is_given_once(tmp_path: Path) -> None:
    catalog.add({"both": "a/b"}, "mine", tmp_path / "models.yaml")
    with pytest.raises(UserError, match="stands there already"):
        catalog.add({"both": "a/c"}, "mine", tmp_path / "models.yaml")
    assert yaml.safe_load((tmp_path / "models.yaml").read_text()) == {"mine": {"both": "a/b"}}


def test_an_own_name_whose_folder_is_gone_says_so(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("mine: {path: gone}")
    with pytest.raises(UserError, match=r"no such folder. Mend models.yaml"):
        hub.fetch("mine")


def test_the_template_follows_where_the_tokenizer_has_none() -> None:
    assert template_of("qwen-7b-chat") == template_of("Qwen/Qwen-7B-Chat") == "qwen1.5"
    assert template_of("qwen-7b") == template_of("owner/unknown") == template_of("tiny") == ""
    chosen = resolve("auto", None, {}, fallback="chatglm3")
    assert (chosen.name, chosen.note) == ("chatglm3", "the tokenizer has no chat template; the family `chatglm3` is used")
    own = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert resolve("auto", own, {}, fallback="chatglm3").source == own
    assert resolve("llama2", own, {}, fallback="chatglm3").name == "llama2"
    assert resolve("auto", None, {}).name == "default"


def test_commands_take_a_name_for_a_model(tmp_path: Path) -> None:
    save("llama", tmp_path / "model")
    catalog.add({"path": "model"}, "mine", tmp_path / "models.yaml")
    source = find_source("mine")
    assert (source.base.path, source.adapter, source.tokenizer) == ("mine", None, tmp_path / "model")
    with pytest.raises(UserError, match=r"there is no run `llama-2-7b-caht`. .*Or did you mean the model `llama-2-7b-chat`"):
        find_source("llama-2-7b-caht")


def test_the_pages_count_as_the_catalogue_does(root: Path) -> None:
    count = len(catalog._shipped())
    for page, words in (
        ("README.md", f"[{count} of them"),
        ("README.zh.md", f"其中 {count} 个"),
        ("CHANGELOG.md", f"of {count} models"),
    ):
        assert words in (root / page).read_text("utf-8"), page


def test_a_run_by_name_learns_and_talks_with_the_template_of_the_catalogue(tmp_path: Path) -> None:
    space = Workspace.make(tmp_path)
    (tmp_path / "model" / "chat_template.jinja").unlink()
    catalog.add({"path": "model", "template": "alpaca"}, "mine", tmp_path / "models.yaml")
    run = luthier.train(space.recipe, overrides=["model=mine", "train.max_steps=1"], progress=False)
    assert load_recipe(run.path / "recipe.yaml").model.path == "mine"
    assert "the tokenizer has no chat template; the family `alpaca` is used" in (run.path / "log" / "rank-0.txt").read_text(
        "utf-8"
    )
    assert "### Instruction:" in (run.path / "final" / "chat_template.jinja").read_text("utf-8")
    assert luthier.load("mine").template.name == "alpaca"
    assert luthier.load(run).template.name in ("alpaca", "the tokenizer's")
