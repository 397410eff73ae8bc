"""`attnc schema`: the JSON schema of whatever attnc prints or writes as JSON."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from attnc.cli.exits import CommandError, Exit

SCHEMAS: dict[str, tuple[str, str, str]] = {
    "spec": ("attnc.compiler.spec", "Spec", "a checked spec"),
    "plan": ("attnc.codegen.built", "Built", "plan.json of a built folder; attnc build --json"),
    "table": ("attnc.cli.show_report", "TableReport", "attnc show --json, for the stages spec and plan"),
    "graph": ("attnc.cli.graph_report", "GraphReport", "attnc show --stage graph --json"),
    "text": ("attnc.cli.show_report", "TextReport", "attnc show --json, for the stages tree and module"),
    "mask": ("attnc.cli.show_report", "MaskReport", "attnc show --mask LAYER --json"),
    "check": ("attnc.cli.report", "CheckReport", "attnc check --json"),
    "diagnostics": ("attnc.cli.formats", "DiagnosticsReport", "--diagnostics json, whose rows are LSP's"),
    "diff": ("attnc.compiler.difference", "Difference", "attnc diff --json"),
    "specs": ("attnc.cli.specs", "SpecsReport", "attnc specs --json"),
    "explain": ("attnc.cli.explain", "PagesReport", "attnc explain --json"),
    "import": ("attnc.checkpoint.report", "ImportReport", "attnc import --json"),
    "eval": ("attnc.evaluate.report", "EvalReport", "attnc eval --json"),
    "evidence": ("attnc.evaluate.evidence", "Evidence", "docs/evidence/mqar.json"),
    "train": ("attnc.train.report", "TrainReport", "attnc train --json"),
    "training": ("attnc.train.report", "Settings", "run.json of a run of attnc train"),
    "bench": ("attnc.bench.report", "BenchReport", "attnc bench --json"),
    "calibrate": ("attnc.bench.tables_report", "CalibrationReport", "attnc calibrate --json"),
    "doctor": ("attnc.cli.environment", "EnvironmentReport", "attnc doctor --json"),
    "tune": ("attnc.codegen.tune.messages", "TuneReport", "attnc tune kernels --json"),
    "tuned": ("attnc.codegen.tune.table", "Table", "the file of attnc tune kernels"),
    "tuning": ("attnc.codegen.tune.table", "FolderTuning", "tuning.json of a built folder"),
    "policy": ("attnc.compiler.policy", "Policy", "the file of attnc tune solve; attnc tune solve --json"),
    "run": ("attnc.tune.runs", "Settings", "run.json of attnc tune score"),
    "journal": ("attnc.tune.journal", "Row", "a line of the journal of attnc tune score"),
    "score": ("attnc.tune.report", "ScoreReport", "attnc tune score --json"),
    "frontier": ("attnc.tune.report", "FrontierReport", "attnc tune solve --frontier --json"),
    "refine": ("attnc.tune.refine", "Refined", "attnc tune refine --json"),
    "prove": ("attnc.tune.prove", "Verdict", "attnc tune prove --json"),
    "verify": ("attnc.codegen.verify.report", "VerifyReport", "attnc verify --json"),
    "gpu": ("attnc.codegen.triton.verified", "Verified", "one row of docs/gpu.json"),
}
"""Name: module, class, and what is of that shape."""


def complete(incomplete: str) -> list[tuple[str, str]]:
    """Names that begin so, for the shell."""
    return [(name, what) for name, (_, _, what) in SCHEMAS.items() if name.startswith(incomplete)]


def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="All names are listed without it.", autocompletion=complete)
    ] = None,
) -> None:
    """Print the JSON schema of a file or a report."""
    if name is None:
        margin = max(map(len, SCHEMAS)) + 2
        for one, (_, _, what) in SCHEMAS.items():
            typer.echo(f"{one:<{margin}}{what}")
        return
    typer.echo(json.dumps(schema_of(name), indent=2))


def schema_of(name: str) -> dict[str, Any]:
    """The schema as data."""
    from attnc.dsl.diagnostic import closest

    if name not in SCHEMAS:
        raise CommandError(
            Exit.USAGE, f"there is no schema `{name}`", closest(name, SCHEMAS) or "`attnc schema` lists all names"
        )
    module, owner, _ = SCHEMAS[name]
    return TypeAdapter(getattr(import_module(module), owner)).json_schema(mode="serialization")
