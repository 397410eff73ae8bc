"""`attnc doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from attnc.cli.exits import Exit
from attnc.cli.options import Json
from attnc.cli.output import bytes_text, complain, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.cli.environment import EnvironmentReport

SHOWN = ("torch", "triton", "transformers", "gguf")


def doctor(json: Json = False) -> None:
    """Report versions, GPUs, caches, and what is missing."""
    from attnc.cli.environment import examine

    report = examine()
    if json:
        print_json(report)
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(Exit.ENVIRONMENT)


def _print(report: EnvironmentReport) -> None:
    packages = report.packages
    rows = [("attnc", report.attnc), ("python", f"{report.python}, {report.platform}")]
    rows += [(name, version or "not installed") for name, version in packages.items() if name in SHOWN]
    rows += [("gpu", f"{gpu.name}, capability {gpu.capability}, {bytes_text(gpu.memory)}") for gpu in report.gpus] or [
        ("gpu", "none")
    ]
    if report.driver:
        rows.append(("driver", report.driver))
    rows.append(("interpreter", "TRITON_INTERPRET is set" if report.triton_interpret else "off"))
    rows += [("cache", f"{folder.path} ({folder.purpose}; {bytes_text(folder.free)} free)") for folder in report.folders]
    print_pairs(rows)
    for remark in report.remarks:
        typer.echo(f"note: {remark}")
    for problem in report.problems:
        complain(problem.message, problem.help)
    if not report.problems:
        typer.echo("nothing is missing")
