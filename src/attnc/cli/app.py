"""The list of commands."""

from __future__ import annotations

import typer

from attnc.cli import build, check, doctor, explain, fmt, graft, import_checkpoint, run, show, version

HELP = "The compiler for hybrid attention: a short spec in, readable PyTorch and Triton out."
EPILOG = "Exit codes: 0 ok, 1 a check or comparison failed, 2 usage, 3 the spec has errors, 4 environment, 5 a mistake of ours."

app = typer.Typer(
    name="attnc",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback(invoke_without_command=True, help=HELP, epilog=EPILOG)(version.options)
app.command()(check.check)
app.command()(fmt.fmt)
app.command()(show.show)
app.command()(build.build)
app.command("import")(import_checkpoint.import_checkpoint)
app.command()(graft.graft)
app.command()(run.run)
app.command()(explain.explain)
app.command()(doctor.doctor)
