"""The recipes that come with Luthier: `recipes/` of the checkout, or the copy of it inside the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder() -> Path | None:
    """The folder of shipped recipes: in the wheel, else in the checkout that this package is installed from."""
    checkout = PACKAGE.parent.parent
    candidates = [PACKAGE / "recipes"]
    if (checkout / "pyproject.toml").is_file():
        candidates.append(checkout / "recipes")
    return next((folder for folder in candidates if folder.is_dir()), None)


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes by name: the path below the folder, without `.yaml`, e.g. `tiny/identity`."""
    folder = shipped_folder()
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def first_comment(path: Path) -> list[str]:
    """The comment that opens a recipe (the command, what it needs, what it gives), one entry a line, without `#`."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines
