"""`loss.png`: training loss, raw and smoothed, and the validation loss over steps.

Smoothing is an exponential moving average with the bias correction of Adam, so that the first points are means of what there is
and not pulled towards zero: m_t = β·m_{t-1} + (1-β)·x_t, shown as m_t / (1 - β^t). β grows with the length of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.runs.folder import RunFolder
from luthier.runs.reader import RunReader
from luthier.runs.records import Callback, StartInfo


def smooth(values: Sequence[float], beta: float) -> list[float]:
    """Exponential moving average of `values` with bias correction; `beta` 0 leaves them as they are."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = beta * mean + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        out.append(mean / weight)
    return out


def series(records: Iterable[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of `key` in metrics records, without those that are missing or null."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def plot_loss(records: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> bool:
    """Draw the losses in `records` (as `RunReader.metrics` gives them) to a PNG; False if there are none."""
    steps, losses = series(records, "loss")
    evaluated, validation = series(records, "eval_loss")
    if not steps:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(steps, smooth(losses, 1 - 1 / max(1.0, len(losses) / 50)), color="tab:blue", label="training")
    if evaluated:
        axes.plot(evaluated, validation, color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set(xlabel="step", ylabel="loss", title=title if title.isascii() else "")  # the built-in font has no Chinese
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))
    return True


class PlotCallback(Callback):
    """Draws `loss.png` when the run ends, from what the run folder holds, so that it spans all attempts."""

    def __init__(self) -> None:
        self._folder: RunFolder | None = None

    def on_start(self, info: StartInfo) -> None:
        """Note where the run lies."""
        self._folder = RunFolder(info.folder)

    def on_end(self, state: str) -> None:
        """Draw."""
        if self._folder:
            plot_loss(RunReader(self._folder).metrics(), self._folder.plot, self._folder.name)
