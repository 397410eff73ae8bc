"""A report as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap

from attnc.bench.report import BenchReport, Result, Row, Timed
from attnc.compiler.show import numbers_text, seconds_text

WIDTH = 80
HEAD = f"{'':<11}{'time':>9}{'least .. most':>21}{'rate':>13}{'of roof':>9}{'x ours':>8}"


def header_text(report: BenchReport) -> str:
    """The machine and its ceilings."""
    machine, roof = report.machine, report.ceiling
    versions = f"torch {machine.torch}, triton {machine.triton or 'not installed'}, attnc {machine.attnc}"
    commit = f" ({machine.commit[:10]})" if machine.commit else ""
    lines = [
        f"{machine.device}, {report.dtype}",
        versions + commit,
        f"roof, measured in this run: products {rate_text(roof.flops, 'FLOP/s')}, copies {rate_text(roof.bandwidth, 'B/s')}",
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, WIDTH)) + "\n"


def row_text(row: Row, before: Row | None) -> str:
    """A row, below its launch's name where the row before it is of another one."""
    begin = "\n" + _launch_text(row) if before is None or before.launch != row.launch else ""
    return begin + _row_text(row)


def skipped_text(report: BenchReport) -> str:
    """The launches that are not timed, and why."""
    named = {skip.launch: "" if skip.words == skip.launch else f" ({skip.words})" for skip in report.skipped}
    found = [_wrapped(f"{skip.launch}{named[skip.launch]} is not timed: {skip.reason}", "") for skip in report.skipped]
    return "".join(f"\n{text}" for text in found)


def _launch_text(row: Row) -> str:
    lines = [f"{row.launch}, {numbers_text(list(row.layers))}", f"  {row.words}", f"  {row.sizes}; batch {row.batch}"]
    return "".join(_wrapped(line, "  ") for line in lines)


def _row_text(row: Row) -> str:
    title = f"\n{row.phase}, {row.length} tokens"
    if row.reason is not None:
        return f"{title}\n{_wrapped(f'  {row.reason}', '  ')}"
    lines = [f"{title}, {_amount(row)}; planned: {row.planned}", HEAD]
    return "\n".join(lines) + "\n" + "".join(_result_text(result, row) for result in row.results)


def _amount(row: Row) -> str:
    return rate_text(row.bytes, "B") if row.phase == "decode" else rate_text(row.flops, "FLOP")


def _result_text(result: Result, row: Row) -> str:
    name = f"{'*' if result.ours else ' '} {result.name:<9}"
    if result.timed is None:
        return _wrapped(f"{name} {result.reason}", " " * 12)
    timed = result.timed
    unit = "B/s" if row.phase == "decode" else "FLOP/s"
    spread = f"{seconds_text(timed.least)} .. {seconds_text(timed.most)}"
    ratio = "" if timed.ratio is None else f"{timed.ratio:.2f}"
    line = f"{name}{seconds_text(timed.median):>9}{spread:>21}{rate_text(timed.rate, unit):>13}{timed.share:>9.1%}{ratio:>8}\n"
    return line if result.setup is None else line + f"{'':<11}  its mask, made once: {seconds_text(result.setup)}\n"


def rate_text(rate: float, unit: str) -> str:
    """`412 TFLOP/s`: three significant digits."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= 0.9995 * size:
            return f"{rate / size:.3g} {prefix}{unit}"
    return f"{rate:.3g} {unit}"


def _wrapped(text: str, indent: str) -> str:
    begin = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(text.strip(), WIDTH, initial_indent=begin, subsequent_indent=indent + "  ") + "\n"


def timed_of(row: Row, name: str) -> Timed | None:
    """A participant's times in a row, if it has some."""
    return next((result.timed for result in row.results if result.name == name), None)
