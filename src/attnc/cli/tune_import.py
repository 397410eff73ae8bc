"""`attnc tune import`: a table of MInference or DuoAttention as a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from attnc.cli.options import Device, Json, device_name, read_spec
from attnc.cli.output import note, print_json, print_pairs


def import_table(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="The file as it was published.", show_default=False)],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec that it decides.", show_default=False)],
    form: Annotated[
        Literal["minference", "duo"] | None,
        typer.Option("--from", help="Whose; minference for .json, else duo.", show_default=False),
    ] = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The policy; beside the spec.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Make a policy of MInference's patterns or DuoAttention's head table."""
    from attnc.compiler.policies import path_beside
    from attnc.compiler.policy import Machine, policy_text
    from attnc.tune.runs import write_text
    from attnc.tune.tables import imported

    name = device_name(device)
    own = form or ("minference" if table.suffix == ".json" else "duo")
    made = imported(read_spec(file), table, own, Machine(device=name), lambda words: note(f"note: {words}"))
    path = out or path_beside(Path(file), name)
    write_text(path, policy_text(made))
    if json:
        print_json(made)
    else:
        print_pairs([("policy", str(path)), ("made by", made.made_by), ("rows", str(len(made.settings)))])
