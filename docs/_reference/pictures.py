"""The pictures of a run in README and docs: what a terminal shows, kept as SVG.

    make pictures
    python docs/_reference/pictures.py --quick --to DIR     # six steps: does it still run?

Two commands run as a person would run them, in a pseudo-terminal, so that they show their bar and their colours. pyte, a terminal
in memory, reads what they write; rich draws its screen. The picture of the training shows two moments: the bar on its way, and below
the dots the end of the same run. Nothing is typed by hand, and a second run differs in nothing but times.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ("你是谁？", "Who are you?", "What is 21 + 34?")
TRAIN = ("luthier", "train", "recipes/tiny/identity.yaml", "evaluate.samples.every=80", "--name", "first")
COMPARE = ("luthier", "compare", "first", *(word for question in QUESTIONS for word in ("--prompt", question)))
ROWS, COLUMNS = 80, 100
ON_ITS_WAY = re.compile(r" (\d+)/(\d+) +loss .* left")
"""The bar's line, once it knows how long the rest will take."""

INK, PAPER = (226, 220, 210), (32, 29, 27)
WOOD = TerminalTheme(
    PAPER,
    INK,
    [PAPER, (224, 108, 98), (152, 195, 121), (229, 181, 103), (120, 170, 230), (198, 146, 216), (110, 196, 190), INK],
    [(120, 112, 104), (240, 130, 120), (172, 215, 141), (245, 205, 130), (150, 190, 240), (215, 170, 230), (140, 216, 210), INK],
)
SVG = "http://www.w3.org/2000/svg"
CELL = 20 * 0.61
"""Width of a cell as `Console.export_svg` has it."""
FRAME = """\
<svg viewBox="0 0 {width} {height:.0f}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font: {char_height}px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace;
}}
{styles}
</style>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""
NAMES = {"brown": "yellow", "brightbrown": "bright_yellow"}
"""pyte's names of colours where rich has others."""


def main() -> None:
    """Run the two commands in a folder of their own, and write a picture of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs/pictures", metavar="DIR", help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="six steps only")
    chosen = parser.parse_args()
    chosen.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "recipes/tiny", Path(folder, "recipes/tiny"))
        shown = train(Path(folder), ["train.max_steps=6"] if chosen.quick else [])
        (chosen.to / "train.svg").write_text(draw([prompt(TRAIN), *shown]), encoding="utf-8")
        *_, screen = screens(COMPARE, Path(folder))
        (chosen.to / "compare.svg").write_text(draw([prompt(COMPARE), *lines(screen)]), encoding="utf-8")


def train(folder: Path, more: Sequence[str]) -> list[Text]:
    """The lines of a training: with the bar half-way, and from there to the end.

    A short run may be over before it is seen half-way; the bar as it was last seen before that does as well.
    """
    halfway: list[Text] = []
    passed = False
    for screen in screens((*TRAIN, *more), folder):
        found = ON_ITS_WAY.search(row(screen, screen.cursor.y).plain)
        if found and not passed:
            halfway, passed = lines(screen), 2 * int(found[1]) >= int(found[2])
    assert halfway, "the bar was never seen"
    return [*halfway, Text("⋮", "dim"), *lines(screen)[len(halfway) - 1 :]]  # the bar has left no line behind


def prompt(command: Sequence[str]) -> Text:
    """The command as it was typed."""
    words = (f'"{word}"' if word in QUESTIONS else shlex.quote(word) for word in command)
    return add(Text.assemble(("$ ", "dim")), " ".join(words), Style(bold=True))


def screens(command: Sequence[str], folder: Path) -> Iterator[pyte.Screen]:
    """Run a command in a pseudo-terminal; the one screen, after each thing that is written to it.

    Raises:
        RuntimeError: it failed; with what it wrote.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    program = [sys.executable, "-m", *command]
    terminal = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "NO_COLOR": ""}
    environment = {**os.environ, **terminal, "LUTHIER_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment) as process:
        os.close(theirs)
        for written in iter(reading(ours), b""):
            stream.feed(written)
            yield screen
    os.close(ours)
    if process.returncode:
        shown = "\n".join(line.rstrip() for line in screen.display)
        raise RuntimeError(f"{shlex.join(program)} ended with {process.returncode}:\n{shown.rstrip()}")


def reading(terminal: int) -> Callable[[], bytes]:
    """Reads what was written to a pseudo-terminal; empty at its end, which Linux tells as an error."""

    def read() -> bytes:
        try:
            return os.read(terminal, 65536)
        except OSError:
            return b""

    return read


def lines(screen: pyte.Screen) -> list[Text]:
    """The screen as coloured lines, without the empty ones at its end."""
    rows = [row(screen, number) for number in range(screen.lines)]
    while rows and not rows[-1].plain:
        rows.pop()
    return rows


def row(screen: pyte.Screen, number: int) -> Text:
    """One line of the screen."""
    cells = [screen.buffer[number][column] for column in range(screen.columns)]
    text = Text()
    for look, piece in groupby(cells, style):
        add(text, "".join(cell.data for cell in piece), look)
    text.rstrip()
    return text


def add(text: Text, words: str, look: Style) -> Text:
    """Append words; wide characters are pieces of their own, so that each piece can be spread evenly over its cells."""
    for _, piece in groupby(words, cell_len):
        text.append("".join(piece), look)
    return text


def style(cell: Char) -> Style:
    """How a character looks."""
    colour = re.sub("^bright(?!_)", "bright_", NAMES.get(cell.fg, cell.fg))
    if re.fullmatch("[0-9a-f]{6}", colour):
        colour = f"#{colour}"
    return Style(color=colour, bold=cell.bold, italic=cell.italics, underline=cell.underscore, reverse=cell.reverse)


def draw(shown: Sequence[Text]) -> str:
    """The lines as SVG in a window's frame. Dark on any page, and nothing in it is fetched from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor", highlight=False)
    for line in shown:
        console.print(line)
    return in_the_grid(console.export_svg(title="", theme=WOOD, code_format=FRAME, unique_id="luthier"))


def in_the_grid(picture: str) -> str:
    """rich's SVG with the width of each text in cells, where rich counts characters; and without line ends and clipping."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(picture)
    for group in list(root.iter(f"{{{SVG}}}g")):
        for text in group.findall(f"{{{SVG}}}text"):
            words = text.text or ""
            text.attrib.pop("clip-path", None)
            text.set("textLength", f"{CELL * cell_len(words):g}")
            if not words.strip():
                group.remove(text)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


if __name__ == "__main__":
    main()
