"""The wheel brings everything that a fresh environment needs: code, templates, recipes, the embedded model."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(folder),
        str(root),
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("luthier-*.whl")
    return path


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"luthier/{path.relative_to(root / 'src/luthier').as_posix()}" for path in (root / "src/luthier").rglob("*.py")}
    expected |= {
        f"luthier/recipes/{path.relative_to(root / 'recipes').as_posix()}" for path in (root / "recipes").rglob("*.yaml")
    }
    expected |= {f"luthier/chat/templates/{path.name}" for path in (root / "src/luthier/chat/templates").glob("*.jinja")}
    tiny = (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "ATTRIBUTION.md",
        "README.md",
        "build.json",
        "loss.svg",
    )
    expected |= {f"luthier/models/tiny/{name}" for name in tiny}
    expected |= {"luthier/py.typed", "luthier/chat/families.yaml", "luthier/recipes/tiny/identity.json"}
    assert not expected - names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "build"))]
    assert wheel.stat().st_size < 13_000_000


@pytest.mark.slow
def test_the_wheel_finds_its_recipes_and_model_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "from luthier.recipe.shipped import shipped_recipes; from luthier.recipe.load import load_recipe\n"
        "from luthier.models.hub import fetch; import luthier\n"
        "assert 'site' in luthier.__file__, luthier.__file__\n"
        "recipe = load_recipe('tiny/identity')\n"
        "assert 'site' in recipe.data.train[0].path and open(recipe.data.train[0].path)\n"
        "assert (fetch('tiny') / 'model.safetensors').is_file()\n"
        "print(len(shipped_recipes()))\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8
