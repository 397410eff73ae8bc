"""`attnc tune prove`: a policy's whole model on texts that nothing was measured on."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json
from attnc.cli.output import note, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.tune.prove import Verdict


def prove(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run of attnc tune solve.", show_default=False)],
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="The run's own.", show_default=False)] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where they are now; where the run found them.", show_default=False)
    ] = None,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Texts of each task and length, at most.")] = 40,
    length: Annotated[str, typer.Option(metavar="N,N", help="Tokens; those that were measured.", show_default=False)] = "",
    max_rise: Annotated[float, typer.Option(min=0, metavar="%", help="Of the loss on text, in per cent.")] = 1.0,
    max_drop: Annotated[float, typer.Option(min=0, metavar="POINTS", help="Of the share of right answers.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=0, metavar="N", help="How often budgets rise after a failure.")] = 3,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The last fifth of pydoc_data.topics.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Texts at once.")] = 4,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.", show_default=False)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; the run's.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Measure a policy end to end on held-out texts; raises budgets until it holds."""
    from attnc.cli.options import device_name
    from attnc.cli.run import number_type
    from attnc.cli.tune_score import numbers
    from attnc.cli.tune_solve import table_of
    from attnc.cli.verify import chosen_device
    from attnc.compiler.policies import path_beside, read_policy
    from attnc.compiler.policy import policy_text
    from attnc.tune.gpu_lock import one_per_gpu
    from attnc.tune.prove import Gate, Prover
    from attnc.tune.runs import POLICY, Run, machine_of, write_text

    run = Run.open(place)
    if run.settings.text is not None and text is None and "text" in run.settings.tasks:
        raise CommandError(Exit.USAGE, "the run read a text of yours, so its proof needs another one", "--text FILE")
    where = chosen_device(device, "--device cpu proves there")
    first = read_policy(policy or place / POLICY)
    at = first.figures[0] if first.figures else None
    table = table_of(run, first.machine.device, at.length if at else None, at.batch if at else 1, first.probe)
    machine = machine_of(where, "cpu" if where == "cpu" else device_name(None))
    gate = Gate(max_rise / 100, max_drop / 100, trials, numbers("length", length) if length else (), text, rounds, batch)
    folder = weights or Path(run.settings.weights_from)
    with TemporaryDirectory(prefix="attnc-tune-") as scratch, one_per_gpu(where, note):
        prover = Prover(
            run, folder, Path(scratch), where, number_type(dtype or run.settings.dtype), machine, gate, where != "cpu", note
        )
        verdict = prover.go(first, table)
    for path in (place / POLICY, policy or path_beside(Path(run.settings.file), first.machine.device)):
        if path.parent.is_dir():
            write_text(path, policy_text(verdict.policy))
    if json:
        print_json(verdict)
    else:
        _print(verdict)
    if not verdict.proved:
        raise typer.Exit(Exit.DIFFERENT)


def _print(verdict: Verdict) -> None:
    from attnc.cli.verify import table as aligned

    rows: list[tuple[str, ...]] = [("task", "tokens", "trials", "full", "policy", "rise")]
    for one in verdict.policy.losses:
        wrong = one.task != "text"
        shown = [f"{value:.2%} wrong" if wrong else f"{value:.4f} nats" for value in (one.full, one.policy)]
        rise = f"{100 * one.rise:+.2f} points" if wrong else f"{one.rise:+.2%}"
        rows.append((one.task, str(one.length), str(one.trials), *shown, rise))
    typer.echo("\n".join(aligned(rows, frozenset({"tokens", "trials", "full", "policy", "rise"}))))
    timed = [figure for figure in verdict.policy.figures if figure.measured is not None]
    for figure in timed:
        taken = figure.measured or 0.0
        away = f", {taken / figure.predicted - 1:+.1%} of what was predicted" if figure.predicted else ""
        typer.echo(f"{figure.what} at {figure.length} tokens: {taken:.4g}{away}")
    typer.echo()
    word = "proved" if verdict.proved else "not proved"
    print_pairs(
        [
            ("verdict", f"{word} after {verdict.rounds} rises of the budgets"),
            ("worst task", f"{verdict.worst}, {verdict.used:.0%} of what it may lose"),
        ]
    )
