"""A picture of a run: its loss by step, each term in a panel of its own. Needs matplotlib (`attnc[plot]`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WINDOW = 50
"""The line is a mean over a fiftieth of the steps so far shown; the points under it are the steps."""

UNITS = {"lm": "nats a token", "kl": "nats a token", "lagrangian": "share of sparse choices"}


def there() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def smooth(values: Sequence[float], span: int) -> list[float]:
    """The mean of each value and up to span - 1 before it."""
    total, found = 0.0, []
    for at, value in enumerate(values):
        total += value - (values[at - span] if at >= span else 0.0)
        found.append(total / min(at + 1, span))
    return found


def draw(columns: Sequence[str], history: Sequence[Sequence[float]], path: Path, title: str) -> Path | None:
    """Writes the picture; nothing is shown on a screen. None where no step was made."""
    if not history:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = range(len(columns)) if len(columns) > 2 else range(1, 2)  # one term is the whole loss
    wide = min(2, len(shown))
    tall = -(-len(shown) // wide)
    figure, axes = pyplot.subplots(tall, wide, figsize=(5.6 * wide, 3.4 * tall), squeeze=False)
    for cell in axes.flat[len(shown) :]:
        cell.set_axis_off()
    for cell, at in zip(axes.flat, shown, strict=False):
        _panel(cell, columns[at], [row[at] for row in history])
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _panel(axes: Any, name: str, values: list[float]) -> None:
    at = range(1, len(values) + 1)
    span = max(1, len(values) // WINDOW)
    axes.plot(at, values, color="C0", alpha=0.25, linewidth=0.8, label="each step" if span > 1 else None)
    axes.plot(at, smooth(values, span), color="C0", linewidth=1.6, label=f"mean of {span}" if span > 1 else None)
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("steps")
    axes.set_ylabel(UNITS.get(name, name))
    axes.grid(visible=True, alpha=0.3)
    if span > 1:
        axes.legend(fontsize=8)
