"""`attnc tune`: blocks of kernels, and what a spec leaves open, each decided for one GPU."""

from __future__ import annotations

import typer

from attnc.cli.tune_import import import_table
from attnc.cli.tune_kernels import kernels
from attnc.cli.tune_prove import prove
from attnc.cli.tune_refine import refine
from attnc.cli.tune_score import score
from attnc.cli.tune_solve import solve

tune = typer.Typer(
    help="Decide for one GPU: blocks of kernels; each choose and budget of a spec, measured, solved and proved.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
tune.command("kernels")(kernels)
tune.command("score")(score)
tune.command("solve")(solve)
tune.command("refine")(refine)
tune.command("prove")(prove)
tune.command("import")(import_table)
