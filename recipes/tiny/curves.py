"""Draw the losses of both trainings as one small picture for the model card.

    python recipes/tiny/curves.py build/tiny/runs/pretrain build/tiny/runs/chat loss.svg

Each training has a panel: the mean loss of every hundredth part of its steps as a line, the held-out losses as dots. SVG written
by hand is small, the same to the byte each time, and readable on light and dark pages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 360, 220
LEFT, TOP, RIGHT, BOTTOM = 40, 28, 12, 34
PARTS = 100
GREY, BLUE, ORANGE = "#808080", "#3b82c4", "#d97706"
Point = tuple[float, float]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").split("\n") if line]


def trained(records: Sequence[dict[str, Any]]) -> list[Point]:
    """Million tokens seen and mean loss, at most `PARTS` points."""
    steps = [record for record in records if "loss" in record]
    size = -(-len(steps) // PARTS)
    points, seen = [], 0
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        seen += sum(record["tokens"] for record in part)
        points.append((seen / 1e6, sum(record["loss"] for record in part) / len(part)))
    return points


def held_out(records: Sequence[dict[str, Any]]) -> list[Point]:
    """Million tokens seen and held-out loss."""
    points, seen = [], 0
    for record in records:
        seen += record.get("tokens", 0) if "loss" in record else 0
        if "eval_loss" in record:
            points.append((seen / 1e6, record["eval_loss"]))
    return points


def panel(title: str, line: Sequence[Point], dots: Sequence[Point], offset: int) -> list[str]:
    """One diagram, `offset` pixels from the left."""
    right, top = max(x for x, _ in line), max(y for _, y in [*line, *dots])
    ceiling = int(top) + 1

    def place(point: Point) -> str:
        x = offset + LEFT + point[0] / right * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{TOP + (1 - point[1] / ceiling) * (HEIGHT - TOP - BOTTOM):.1f}"

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'

    parts = [text(offset + WIDTH / 2, 16, title)]
    for value in range(0, ceiling + 1, max(1, ceiling // 4)):
        (x, y), (end, _) = (place(point).split(",") for point in ((0, value), (right, value)))
        parts += [
            f'<path d="M{x},{y}H{end}" stroke="{GREY}" stroke-opacity=".3"/>',
            text(float(x) - 6, float(y) + 4, str(value), "end"),
        ]
    for share in (0, 0.5, 1):
        x = float(place((right * share, 0)).split(",")[0])
        parts.append(text(x, HEIGHT - BOTTOM + 16, f"{right * share:.1f}"))
    parts.append(text(offset + WIDTH / 2, HEIGHT - 3, "million tokens"))
    parts.append(f'<polyline points="{" ".join(map(place, line))}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>')
    for x, y in (place(point).split(",") for point in dots):
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{ORANGE}"/>')
    return parts


def draw(runs: Sequence[tuple[str, Path]]) -> str:
    """The picture: a panel for each run."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(runs)} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="{GREY}">',
        "<title>Loss of both trainings: line, training; dots, held out</title>",
    ]
    for number, (title, run) in enumerate(runs):
        records = metrics(run)
        parts += panel(title, trained(records), held_out(records), number * WIDTH)
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    options.picture.write_text(draw([(run.name, run) for run in options.runs]), "utf-8")


if __name__ == "__main__":
    main()
