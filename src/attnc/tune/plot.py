"""A picture of a frontier: loss against cost. Needs matplotlib (`attnc[plot]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnc.tune.report import FrontierReport

NAMES = {"method": "by the spec's method", "head": "each head by itself", "layer": "each layer by itself", "all": "all alike"}
UNITS = {"kv_bytes": "bytes of cache", "decode_ms": "ms of a decode step", "prefill_ms": "ms of prefill"}


def draw(report: FrontierReport, path: Path) -> None:
    """Writes the picture; nothing is shown on a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    chart: Any = axes
    for per, name in NAMES.items():
        points = sorted((point.cost, point.loss) for point in report.points if point.per == per)
        if points:
            chart.plot(*zip(*points, strict=True), "o-", label=name, markersize=4)
    chart.axvline(report.full, color="0.6", linestyle=":", label="full attention")
    chart.set_xlabel(f"{UNITS.get(report.objective, report.objective)}, {report.length} tokens, {report.device}")
    chart.set_ylabel("rise of the loss, added up over sites")
    chart.set_ylim(bottom=0)
    chart.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
