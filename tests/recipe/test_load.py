"""Recipes from files and the command line: what is read, what paths become, and the one line each mistake gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.recipe.load import apply_overrides, dump_recipe, load_recipe, recipe_from
from luthier.recipe.schema import LoRA, Recipe

TEXT = """\
# luthier train first.yaml
name: first
model: {path: tiny}
data:
  train: [alpaca.json]
  validation: 0.05
  max_length: 1024
method: {type: lora, rank: 8, alpha: 16}
train: {epochs: 3, learning_rate: 1e-4, schedule: cosine}
evaluate: {every: 100, samples: {every: 100, prompts: ["你是谁？"]}}
"""
LEAST = {"model": "tiny", "data": {"train": "a.json"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_the_contract_of_the_issue_is_read(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == "first"
    assert recipe.data.train[0].path == str(file.parent / "alpaca.json")
    assert recipe.data.validation == 0.05
    assert recipe.train.learning_rate == 1e-4
    assert recipe.method == LoRA(rank=8, alpha=16)
    assert recipe.stage.type == "sft"
    assert recipe.evaluate.samples.prompts == ("你是谁？",)


def test_json_is_read_too_with_the_lines_of_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{\n\t"model": "tiny",\n\t"data": {"train": "a.json"},\n\t"name": "\\ud83d\\ude00\\/"}')
    assert load_recipe(path).name == "😀/"
    path.write_text('{\n\t"model": "tiny",\n\t"data": {"train": "a.json",\n\t"max_lenght": 3}}')
    assert message(path) == f"{path}:4: unknown key `data.max_lenght`. Did you mean `data.max_length`?"
    path.write_text('{\n"model": "tiny"\n"data": {}}')
    assert message(path).startswith(f"{path}:3: is not JSON: Expecting ',' delimiter")


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("train.learning_rate=2e-4", "train", "learning_rate", 2e-4),
        ("train.learning_rate=1.5E-05", "train", "learning_rate", 1.5e-5),
        ("method.rank=16", "method", "rank", 16),
        ("method.target=[q_proj, v_proj]", "method", "target", ("q_proj", "v_proj")),
        ("train.max_steps=null", "train", "max_steps", None),
        ("data.packing=false", "data", "packing", False),
        ("model.path=org/name", "model", "path", "org/name"),
        ("model.revision=2024-01-01", "model", "revision", "2024-01-01"),
        ("data.system=Hello, you", "data", "system", "Hello, you"),
    ],
)
def test_overrides_are_typed_as_yaml(file: Path, override: str, section: str, field: str, value: object) -> None:
    assert getattr(getattr(load_recipe(file, [override]), section), field) == value


def test_overrides_reach_into_lists_and_short_forms(file: Path) -> None:
    recipe = load_recipe(file, ["data.train.0.weight=2", "evaluate.samples.prompts.0=hi", "name=7"])
    assert recipe.data.train[0].weight == 2
    assert recipe.data.train[0].path == str(file.parent / "alpaca.json")
    assert recipe.evaluate.samples.prompts == ("hi",)
    assert recipe.name == "7"
    short = apply_overrides({"model": "tiny", "method": "lora"}, ["model.revision=x", "method.rank=2"])
    assert short == {"model": {"path": "tiny", "revision": "x"}, "method": {"type": "lora", "rank": 2}}
    assert load_recipe(file, ["method=full"]).method.type == "full"


def test_a_part_without_its_type_is_of_the_default_type() -> None:
    assert recipe_from({**LEAST, "method": {"rank": 3}}, Path()).method == LoRA(rank=3)


def test_paths_are_relative_to_the_recipe_and_overrides_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "recipes", tmp_path / "here"
    (home / "models" / "mine").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    mapping = {
        "model": {"path": "models/mine", "tokenizer": "org/name", "adapter": "../adapter"},
        "data": {"train": ["a.json", {"path": "/x/b.json"}], "validation": "v.json", "template": "t.jinja"},
        "output": "runs",
    }
    path = home / "r.yaml"
    path.write_text(yaml.safe_dump(mapping))
    recipe = load_recipe(path, ["data.train.1=c.json", "model.adapter=./near"])
    assert recipe.model.path == str(home / "models/mine")
    assert recipe.model.tokenizer == "org/name"
    assert recipe.model.adapter == str(here / "near")
    assert [source.path for source in recipe.data.train] == [str(home / "a.json"), str(here / "c.json")]
    assert recipe.data.validation == str(home / "v.json")
    assert recipe.data.template == str(home / "t.jinja")
    assert recipe.output == "runs"


def test_tiny_and_family_names_stay(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    recipe = recipe_from({"model": "tiny", "data": {"train": "a.json", "template": "qwen"}}, tmp_path)
    assert (recipe.model.path, recipe.data.template) == ("tiny", "qwen")


def test_bad_value_on_the_command_line_names_the_file_and_the_line_of_the_key(file: Path) -> None:
    assert message(file, "method.rank=abc") == f"{file}:8: `method.rank=abc` should be a whole number, not `abc`"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trian=1", "unknown key `trian`. Did you mean `train`?"),
        (
            "train.lerning_rate=1",
            ":9: `train.lerning_rate=1`: unknown key `train.lerning_rate`. Did you mean `train.learning_rate`?",
        ),
        ("learning_rate=1", "Did you mean `train.learning_rate`?"),
        ("method=loar", ":8: `method=loar`: unknown method `loar`. Did you mean `lora`? Known: full, freeze, lora, "),
        ("stage=xyz", "unknown stage `xyz`. Known: pt, sft"),
        ("train.schedule=cosin", "should be one of `constant`, `linear`, `cosine`, `wsd`, not `cosin`. Did you mean `cosine`?"),
        ("train.micro_batch_tokens=-1", "should be greater than 0 or `auto`, not `-1`"),
        ("train.learning_rate=.inf", "should be a finite number"),
        ("data.validation=2.5", "`data.validation` should be a share below 1"),
        ("data.validation=true", "`data.validation` should be a share below 1"),
        ("data.train=[]", "`data.train` is an empty list"),
        ("data.train=", "`data.train` is missing"),
        ("train=3", ":9: `train=3` should be a mapping"),
        ("version=2", "recipe version 2. Install a newer Luthier."),
        ("foo", "`foo` is not an override"),
        ("name=[", "the value is not YAML"),
        ("train.seed=!!int abc", "the value is not YAML"),
        ("name=" + "[" * 5000, "the value is not YAML"),
        ("train.seed=99999999999999999999", ":9: `train.seed=99999999999999999999` should be less than"),
        ("data.train.0.weight=1e15", "should be at most 1000"),
        ("data.train.3.weight=2", "`data.train` has 1 entries"),
        ("name.x=2", "`name` is `first`, it has no `x`"),
        ("data.train.weight=2", "`data.train` is a list: say which entry"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(file: Path, override: str, said: str) -> None:
    text = message(file, override)
    assert said in text
    assert "\n" not in text


def test_every_mistake_of_a_file_is_told_on_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "model: tiny\ndata:\n  train: a.json\n  max_lenth: 5\nmethod:\n  rank: abc\n  alpha: -1\n"
        "train: {batch_size: 3, batch_tokens: 5}\n"
    )
    assert message(path).splitlines() == [
        f"{path}:4: unknown key `data.max_lenth`. Did you mean `data.max_length`?",
        f"{path}:6: `method.rank` should be a whole number, not `abc`",
        f"{path}:7: `method.alpha` should be greater than 0, not `-1`",
        f"{path}:8: give `batch_size` (examples) or `batch_tokens`, not both",
    ]


def test_a_field_of_another_method_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: tiny\ndata: {train: a.json}\nmethod:\n  type: full\n  rank: 4\n")
    assert message(path) == f"{path}:5: unknown key `method.rank`. `rank` belongs to `lora`."
    path.write_text("model: {path: tiny, quantization: {bits: 5}}\ndata: {train: a.json}\n")
    assert message(path) == f"{path}:1: `model.quantization.bits` should be one of `2`, `3`, `4`, `8`, not `5`"
    path.write_text("model: {path: tiny, quantization: {bits: 4}}\ndata: {train: a.json}\nmethod: full\n")
    assert message(path).startswith(f"{path}:1: `model.quantization` needs a frozen base")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ": is empty"),
        ("- a\n", ":1: a recipe is a mapping"),
        ("- {instruction: a, output: b}\n", "If it is your data: `luthier train RECIPE data.train="),
        ("model: tiny\ndata:\n  train: [a.json\nmethod: lora\n", ":4: is not YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: `a` is written twice (first on line 1)"),
        ("a: !!python/object:os.system x\n", ":1: is not YAML"),
        ("a: &a [*a]\n", "this is no recipe"),
        ("[" * 100_000, "nested too deeply"),
        (
            "a: &a [1,1]\nb: &b [*a,*a]\n" + "".join(f"k{i}: &k{i} [*{'b' if i == 0 else f'k{i - 1}'}, *b]\n" for i in range(60)),
            "k",
        ),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    assert said in message(path)


def test_a_data_file_without_its_key_is_recognised(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.json").write_text("[]")
    assert "e.g. `data.train=my.json`" in message(file, "my.json")


def test_encodings_and_missing_files(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_recipe(path).name == "first"
    path.write_bytes(b"model: tiny\nname: \xb9\xfa\n")
    assert message(path) == f"{path}:2: is not UTF-8 text. Save it as UTF-8."
    assert message(tmp_path / "frist.yaml") == f"{tmp_path / 'frist.yaml'}: no such file. Did you mean `{file}`?"
    assert "is a folder" in message(tmp_path)


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
recipes = st.builds(
    lambda name, rate, steps, rank, system, weight, columns: {
        "name": name,
        "model": {"path": "tiny"},
        "data": {"train": [{"path": "/d/a.json", "weight": weight, "columns": columns}], "system": system},
        "method": {"type": "lora", "rank": rank},
        "train": {"learning_rate": rate, "max_steps": steps},
    },
    names,
    st.floats(1e-12, 1.0),
    st.none() | st.integers(1, 10**9),
    st.integers(1, 512),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(0.001, 50),
    st.dictionaries(names, names, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(recipes)
@example({"model": "m", "data": {"train": "d", "system": "one\x85two\u2028three\u2029"}})
def test_a_dumped_recipe_reads_back_as_itself(tmp_path_factory: pytest.TempPathFactory, mapping: dict[str, object]) -> None:
    recipe = recipe_from(mapping, Path("/d"))
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    as_json = path.with_suffix(".json")
    as_json.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    assert load_recipe(as_json) == recipe


@pytest.mark.parametrize("name", ["010", "1:30", "1e4", "2024-01-02", "0x1f", "1_000", "1.10", "~", "on", "08"])
def test_a_name_that_looks_like_a_number_is_dumped_as_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe_from({"name": name, "model": "tiny", "data": {"train": "a.json"}}, tmp_path)))
    assert load_recipe(path).name == name


@pytest.mark.parametrize(("written", "name"), [("010", "010"), ("1:30", "1:30"), ("2024", "2024"), ("2024-01-02", "2024-01-02")])
def test_a_name_is_read_as_it_is_written(file: Path, written: str, name: str) -> None:
    assert load_recipe(file, [f"name={written}"]).name == name


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1E+3", 1000.0), ("2.5", 2.5), (".5", 0.5), ("1_000.5", 1000.5), ("3", 3.0), ("+1.e2", 100)],
)
def test_numbers_are_read_as_people_write_them(file: Path, written: str, value: float) -> None:
    assert load_recipe(file, [f"train.learning_rate={written}"]).train.learning_rate == value


def test_a_mistake_inside_a_validation_source_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: tiny\ndata: {train: a.json, validation: {path: v.json, wieght: 1}}\n")
    assert message(path) == f"{path}:2: unknown key `data.validation.wieght`. Did you mean `data.validation.weight`?"


def test_a_recipe_is_frozen(file: Path) -> None:
    recipe = load_recipe(file)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


def test_one_tracker_needs_no_list(tmp_path: Path) -> None:
    found = recipe_from({"model": "tiny", "data": {"train": "rows.json"}, "report_to": "wandb"}, tmp_path)
    assert found.report_to == ("wandb",)


def test_a_shipped_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(UserError, match="Did you mean `tiny/identity`"):
        load_recipe("tiny/identiti")


def test_an_optimizer_is_a_name_or_a_mapping() -> None:
    def rule(**train: object) -> dict[str, object]:
        return recipe_from({**LEAST, "train": train}, Path()).train.optimizer.model_dump()

    assert rule() == rule(optimizer="adamw") == rule(optimizer=None) == rule(optimizer={})
    assert rule(optimizer={"bits": 8})["type"] == "adamw"
    assert rule(optimizer="muon")["momentum"] == 0.95
    laid = apply_overrides({**LEAST, "train": {"optimizer": "lion"}}, ["train.optimizer.beta2=0.95"])
    assert recipe_from(laid, Path()).train.optimizer.model_dump() == rule(optimizer={"type": "lion", "beta2": 0.95})
    free = recipe_from({**LEAST, "train": {"optimizer": "schedule_free"}}, Path())
    assert free.train.schedule == "constant"
    assert recipe_from(yaml.safe_load(dump_recipe(free)), Path()) == free


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"optimizer": "adam"}, "unknown train.optimizer `adam`. Did you mean `adamw`?"),
        ({"rounding": "kahan"}, "`train.rounding: kahan` is for `precision: pure_bf16`"),
        ({"optimizer": "adafacter"}, "unknown train.optimizer `adafacter`. Did you mean `adafactor`?"),
        ({"optimizer": {"type": "lion", "bits": 4}}, "`train.optimizer.bits` should be one of `8`, `32`, not `4`"),
        ({"optimizer": "sgd", "beta1": 0.9}, "unknown key `train.beta1`. Did you mean `train.optimizer.beta1`?"),
        ({"optimizer": "schedule_free", "schedule": "cosine"}, "needs `schedule: constant`"),
        ({"optimizer": "badam", "precision": "pure_bf16"}, "use `precision: bf16`"),
        ({"optimizer": {"bits": 8, "offload": True}}, "without `bits`, `paged` or `pure_bf16`"),
        ({"groups": [{"match": "("}]}, "`match` is not a regular expression"),
    ],
)
def test_mistakes_about_optimizers_are_told(train: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_from({**LEAST, "train": train}, Path())
    assert said in str(caught.value)
