"""`attnc tune solve`: a policy from what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Device, Json, device_name
from attnc.cli.output import bytes_text, note, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.compiler.policy import Machine, Policy
    from attnc.tune.report import FrontierReport
    from attnc.tune.runs import Run
    from attnc.tune.solve import Decided
    from attnc.tune.table import Table

OBJECTIVES = ("decode_ms", "prefill_ms", "kv_bytes", "loss")
LOSSES = ("kl", "nll", "hidden", "output", "mass")


def solve(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run of attnc tune score.", show_default=False)],
    objective: Annotated[str, typer.Option(help=f"What is made small: {', '.join(OBJECTIVES)}.")] = "kv_bytes",
    limit: Annotated[
        list[str], typer.Option(metavar="WHAT=N", help="At most so much of a cost; N% is of full attention's.")
    ] = [],  # noqa: B006
    max_loss: Annotated[
        float | None, typer.Option(min=0, help="Of each task, added up over all sites.", show_default=False)
    ] = None,
    loss: Annotated[str, typer.Option(help=f"The probe that counts: {', '.join(LOSSES)}.")] = "kl",
    device: Device = None,
    length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens, for costs; the longest measured.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences at once.")] = 1,
    per: Annotated[Literal["head", "layer", "all"], typer.Option(help="Decide each site, each layer, or all alike.")] = "head",
    solver: Annotated[
        Literal["exact", "hull"], typer.Option(help="HiGHS; or the hull, which may miss the best and needs no scipy.")
    ] = "exact",
    frontier: Annotated[
        bool, typer.Option("--frontier", help="A table of the least loss at each cost; writes no policy.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="With --frontier: draw it.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The policy; beside the spec.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Decide each choose and budget so that a cost is least within limits; writes a policy file."""
    if objective not in OBJECTIVES:
        raise CommandError(Exit.USAGE, f"there is no objective {objective}", f"--objective takes {', '.join(OBJECTIVES)}")
    if loss not in LOSSES:
        raise CommandError(Exit.USAGE, f"there is no probe {loss}", f"--loss takes {', '.join(LOSSES)}")
    from attnc.compiler.policies import path_beside
    from attnc.compiler.policy import policy_text
    from attnc.tune.methods import by_itself
    from attnc.tune.runs import POLICY, Run, write_text
    from attnc.tune.solve import Wanted, policy
    from attnc.tune.solve import solve as run_solver

    run = Run.open(place)
    table = table_of(run, device_name(device), length, batch, loss)
    limits = _limits(limit, table)
    if frontier:
        _frontier(run, table, "kv_bytes" if objective == "loss" else objective, plot, json)
        return
    if objective != "loss" and max_loss is None and not all(by_itself(unit) for unit in run.all):
        raise CommandError(
            Exit.USAGE, "--max-loss is missing: without it the least cost is the smallest of everything", "--max-loss 0.05"
        )
    decided = run_solver(table, Wanted(objective, limits, max_loss, per, solver))
    machine = run_machine(table)
    made = policy(table, decided, machine, limits | ({} if max_loss is None else {"loss": max_loss}))
    for words in table.notes:
        note(f"note: {words}")
    write_text(place / POLICY, policy_text(made))
    path = out or path_beside(Path(run.settings.file), table.device)
    if path.parent.is_dir():
        write_text(path, policy_text(made))
    if json:
        print_json(made)
    else:
        _print(table, decided, made, path)


def table_of(run: Run, device: str, length: int | None, batch: int, loss: str) -> Table:
    """The run's numbers for a device; times that a GPU of it measured count before its table."""
    from attnc.compiler.device import device_of
    from attnc.tune.table import Table

    length = length or max(run.settings.lengths)
    titles = {row.machine for row in run.journal.rows().values() if row.what == "cost" and row.machine}
    mine = [title for title in titles if device_of(title) == device]
    return Table(run, device, length, batch, loss, mine[0] if mine else "")


def run_machine(table: Table) -> Machine:
    """Where the policy holds."""
    from attnc.compiler.policy import Machine
    from attnc.tune.runs import machine_of

    if table.gpu:
        import torch

        if torch.cuda.is_available() and torch.cuda.get_device_name() == table.gpu:
            return machine_of("cuda", table.device)
    return Machine(device=table.device, gpu=table.gpu)


def _limits(words: list[str], table: Table) -> dict[str, float]:
    found = {}
    for word in words:
        what, _, number = word.partition("=")
        share = number.endswith("%")
        try:
            value = float(number.removesuffix("%"))
        except ValueError:
            value = float("nan")
        if what not in OBJECTIVES[:3] or not value >= 0:
            raise CommandError(
                Exit.USAGE, f"--limit {word} says no limit", "such as --limit kv_bytes=50% or --limit decode_ms=12"
            )
        found[what] = value / 100 * table.whole(what) if share else value
    return found


def _print(table: Table, decided: Decided, made: Policy, path: Path) -> None:
    solution = decided.solution
    pairs = [
        ("policy", str(path)),
        ("made by", made.made_by),
        ("for", f"{table.device}, {table.length} tokens, batch {table.batch}"),
    ]
    for figure in made.figures:
        part = f", {figure.predicted / figure.full:.1%} of full attention" if figure.full else ""
        number = bytes_text(int(figure.predicted)) if figure.what == "kv_bytes" else f"{figure.predicted:.4g}"
        pairs.append((figure.what, f"{number}{part}"))
    losses = ", ".join(f"{task} {value:.4g}" for task, value in solution.loss.items())
    pairs.append(("estimate", f"{losses}: {table.loss} of single sites, added up; attnc tune prove measures the whole"))
    check = "" if solution.check is None else f"; the hull's own answer is within {solution.check:.2%}"
    pairs.append(("gap", f"{solution.gap:.2%} to the best{check}"))
    print_pairs(pairs)
    typer.echo()
    told = [what for what in OBJECTIVES[:3] if what == solution.objective or what in made.limits]
    typer.echo("\n".join(_lines(table, decided, told)))
    note(f"next: attnc tune prove {table.run.place}")


def _lines(table: Table, decided: Decided, told: list[str]) -> list[str]:
    """A line for each candidate: how many KV groups have it, and what it would take at every site of the costs that count."""
    from attnc.cli.verify import table as aligned

    counts: dict[str, int] = {}
    for _, _, first, last, name in decided.solution.picks:
        counts[name] = counts.get(name, 0) + last - first + 1
    total = sum(counts.values())
    rows: list[tuple[str, ...]] = [("decided", "KV groups", *(f"everywhere, {what}" for what in told))]
    for name, count in sorted(counts.items(), key=lambda one: -one[1]):
        shares = (table.everywhere(name, what) for what in told)
        rows.append((name, f"{count} of {total}", *("" if one is None else f"{one:.1%} of full" for one in shares)))
    return list(aligned(rows, frozenset(rows[0][1:])))


def _frontier(run: Run, table: Table, objective: str, plot: Path | None, json: bool) -> None:
    from attnc.tune.report import FrontierReport
    from attnc.tune.solve import frontier

    report = FrontierReport(
        run=str(run.place),
        device=table.device,
        objective=objective,
        length=table.length,
        batch=table.batch,
        full=table.whole(objective),
        points=tuple(frontier(table, objective)),
    )
    if plot is not None:
        from attnc.tune.plot import draw

        draw(report, plot)
    if json:
        print_json(report)
    else:
        _table(report)


def _table(report: FrontierReport) -> None:
    from attnc.cli.verify import table as aligned

    names: Mapping[str, str] = {"method": "by the spec", "head": "each site", "layer": "each layer", "all": "all alike"}
    rows: list[tuple[str, ...]] = [("decided", report.objective, "of full", "loss", "")]
    for point in report.points:
        cost = bytes_text(int(point.cost)) if report.objective == "kv_bytes" else f"{point.cost:.4g}"
        rows.append((names[point.per], cost, f"{point.share:.1%}", f"{point.loss:.4g}", point.candidate))
    typer.echo("\n".join(aligned(rows, frozenset({report.objective, "of full", "loss"}))))
    note("losses are of single sites, added up: attnc tune prove measures a whole policy")
