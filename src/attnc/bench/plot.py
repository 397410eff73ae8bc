"""A picture of a report: times against length, a panel for each launch and phase. Needs matplotlib (`attnc[plot]`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnc.bench.report import BenchReport, Row

FORMATS = (".png", ".svg", ".pdf")
ORDER = ("triton", "torch", "sdpa", "cudnn", "flash", "flex", "fa4", "fla", "reference", "planned", "split", "gluon")
"""A participant has the same colour in every panel and every picture."""

Points = list[tuple[int, float, float, float]]
"""(length, median, least, most) in milliseconds."""


def check() -> None:
    """Raises ModuleNotFoundError without matplotlib."""
    import matplotlib  # noqa: F401


def panels(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Points]]:
    """(launch, phase) -> participant -> its points, by rising length; who has no time has no points."""
    found: dict[tuple[str, str], dict[str, Points]] = {}
    several = list(rows)
    for row in several:
        found.setdefault((row.launch, row.phase), {})  # in the order of the report
    for row in sorted(several, key=lambda row: row.length):
        panel = found[row.launch, row.phase]
        for result in row.results:
            if result.timed is not None:
                timed = result.timed
                panel.setdefault(result.name, []).append((row.length, 1e3 * timed.median, 1e3 * timed.least, 1e3 * timed.most))
    return {key: panel for key, panel in found.items() if panel}


def draw(report: BenchReport, path: Path) -> None:
    """Writes the picture; nothing is shown on a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = panels(report.rows)
    launches, phases = (list(dict.fromkeys(names)) for names in zip(*found, strict=True)) if found else ([""], [""])
    size = (4.6 * len(phases), 3.4 * len(launches) + 0.6)
    figure, axes = pyplot.subplots(len(launches), len(phases), figsize=size, squeeze=False)
    for line, launch in zip(axes, launches, strict=True):
        words = next((row.words for row in report.rows if row.launch == launch), "")
        for cell, phase in zip(line, phases, strict=True):
            if (launch, phase) in found:
                _panel(cell, f"{words}\n{phase}", found[launch, phase])
            else:
                cell.set_axis_off()
    batch = report.rows[0].batch if report.rows else 1
    figure.suptitle(f"{report.machine.device}, {report.dtype}, batch {batch}; median, least and most", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axes: Any, title: str, panel: dict[str, Points]) -> None:
    """Both axes are logarithmic: work that grows with the square of the length is a line twice as steep."""
    from matplotlib.ticker import LogLocator, NullFormatter

    lengths = sorted({point[0] for points in panel.values() for point in points})
    for name in sorted(panel, key=ORDER.index):
        at, median, least, most = zip(*panel[name], strict=True)
        colour = f"C{ORDER.index(name)}"
        axes.plot(at, median, marker="o", markersize=4, color=colour, label=name)
        axes.fill_between(at, least, most, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length // 1024}k" if length % 1024 == 0 else str(length) for length in lengths])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("tokens")
    axes.set_ylabel("ms")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
