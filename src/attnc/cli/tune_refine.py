"""`attnc tune refine`: a policy with less loss for the same cost, by losses that are measured around it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json, device_name
from attnc.cli.output import note, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.tune.refine import Refined

PROBES = ("hidden", "nll", "kl")


def refine(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run of attnc tune solve.", show_default=False)],
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="The run's own.", show_default=False)] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where they are now; where the run found them.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often losses are measured anew, at most.")] = 2,
    per: Annotated[Literal["head", "layer", "all"], typer.Option(help="Decide each site, each layer, or all alike.")] = "head",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure losses again around a policy, and decide with these; keeps its cost, and goes on where it was stopped."""
    from attnc.cli.tune_score import shown
    from attnc.cli.tune_solve import table_of
    from attnc.cli.verify import chosen_device
    from attnc.compiler.policies import path_beside, read_policy
    from attnc.compiler.policy import policy_text
    from attnc.tune.methods import by_itself
    from attnc.tune.refine import Refiner
    from attnc.tune.runs import POLICY, Run, machine_of, write_text
    from attnc.tune.score import Scorer

    run, path = Run.open(place), policy or place / POLICY
    first = read_policy(path)
    if first.probe not in PROBES:
        message = f"{path.name} was decided by {first.probe}, which is of single layers"
        raise CommandError(Exit.USAGE, message, f"attnc tune solve --loss {PROBES[-1]}")
    if all(by_itself(unit) for unit in run.all):
        raise CommandError(
            Exit.USAGE, f"methods of the spec decide all of {run.spec.model.name}, so nothing is searched", "attnc tune prove"
        )
    where = chosen_device(device, "--device cpu measures losses there")
    at = first.figures[0] if first.figures else None
    table = table_of(run, first.machine.device, at.length if at else None, at.batch if at else 1, first.probe)
    machine = machine_of(where, "cpu" if where == "cpu" else device_name(None))
    with TemporaryDirectory(prefix="attnc-tune-") as scratch, shown() as say:
        scorer = Scorer(run, weights or Path(run.settings.weights_from), where, machine, Path(scratch), False, say)
        made = Refiner(scorer, table, per).go(first, rounds, path)
    for file in (place / POLICY, policy or path_beside(Path(run.settings.file), first.machine.device)):
        if file.parent.is_dir():
            write_text(file, policy_text(made.policy))
    if json:
        print_json(made)
    else:
        _print(made)
        note(f"next: attnc tune prove {place}")


def _print(made: Refined) -> None:
    from attnc.cli.verify import table as aligned

    tasks = list(made.begun)
    rows: list[tuple[str, ...]] = [("round", "KV groups moved", *(f"{made.probe} of {task}" for task in tasks), "foretold")]
    rows.append(("", "", *(f"{made.begun[task]:.4g}" for task in tasks), ""))
    for number, one in enumerate(made.steps, 1):
        foretold = ", ".join(f"{one.foretold[task]:.4g}" for task in tasks)
        name = {"layer": "layers alike", "all": "all alike"}.get(one.alike or "", str(number - bool(made.steps[0].alike)))
        rows.append((name, str(one.moved), *(f"{one.loss[task]:.4g}" for task in tasks), foretold))
    typer.echo("\n".join(aligned(rows, frozenset(rows[0]))))
    typer.echo()
    least = "nothing better was found" if not made.steps else "the whole model, on the texts of the run"
    print_pairs([("losses", f"{least}; attnc tune prove asks other texts")])
