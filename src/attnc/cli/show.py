"""`attnc show`: any stage of a spec, or of a built folder, as text or data."""

from __future__ import annotations

import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import attnc
from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import (
    Device,
    Diagnostics,
    Json,
    With,
    Without,
    device_name,
    in_its_text,
    providers,
    read_spec,
    read_tree,
)
from attnc.cli.output import UNTRUNCATED, Format, note, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attnc.cli.verified import Unverified
    from attnc.codegen.built import Built
    from attnc.codegen.tune.table import FolderTuning
    from attnc.compiler.graph import Graph
    from attnc.compiler.planned import Plan
    from attnc.compiler.spec import Spec


PRICED_TOKENS = 8192
MASK_TOKENS = 24
MOST_MASK_TOKENS = 1024
"""More columns than any terminal has."""


class Stage(StrEnum):
    """What a spec becomes, step by step."""

    tree = "tree"
    spec = "spec"
    graph = "graph"
    plan = "plan"
    module = "module"


def show(
    file: Annotated[str, typer.Argument(metavar="FILE|DIR", help="A spec, - for the standard input, or a built folder.")],
    stage: Annotated[Stage, typer.Option(help="How far to go.")] = Stage.plan,
    device: Device = None,
    mask: Annotated[
        int | None, typer.Option(min=0, metavar="LAYER", help="Draw who sees whom in this layer instead.", show_default=False)
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tokens of a sequence: 8192 for prices, 24 for masks unless given.", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences at once, for prices.")] = 1,
    wanted: With = "",
    without: Without = "",
    diagnostics: Diagnostics = Format.text,
    json: Json = False,
) -> None:
    """Show the table, the graph, the plan or the code of a spec."""
    folder = Path(file) if (Path(file) / "plan.json").is_file() else None
    source = str(folder / "spec.attn") if folder else file
    with in_its_text(source):
        if mask is not None:
            _mask(_read(source, folder), mask, length or MASK_TOKENS, json)
            return
        match stage:
            case Stage.tree:
                _tree(source, json)
            case Stage.spec:
                _spec(_read(source, folder), None, json)
            case Stage.graph:
                _graph(_read(source, folder), json)
            case Stage.module:
                _module(source, folder, device, providers(wanted, without), json)
            case Stage.plan:
                spec = _read(source, folder)
                built = _built(folder) if folder and device is None and not (wanted or without) else None
                if built is not None:
                    _spec(spec, built.plans["cpu" if device_name(None) == "cpu" else "cuda"], json, built.tuning)
                else:
                    asked = providers(wanted, without)
                    _spec(spec, attnc.plan(spec, device_name(device), length or PRICED_TOKENS, batch, **asked), json)


def _read(source: str, folder: Path | None) -> Spec:
    """The spec of a file, or that which a folder was built of."""
    from attnc.compiler.policies import of_folder

    return read_spec(source) if folder is None else of_folder(folder)


def _mask(spec: Spec, layer: int, length: int, json: bool) -> None:
    if layer >= len(spec.layers):
        raise CommandError(Exit.USAGE, f"there is no layer {layer}", f"the last layer is {len(spec.layers) - 1}")
    if length > MOST_MASK_TOKENS:
        raise CommandError(Exit.USAGE, f"a mask of {length} tokens is too wide", f"--length goes up to {MOST_MASK_TOKENS} here")
    if sys.stderr.isatty():
        note("loading torch, whose formulas draw the mask ...")
    from attnc.compiler.picture import picture_text, pictures

    found = pictures(spec, layer, length)
    if json:
        from attnc.cli.show_report import MaskReport

        print_json(MaskReport(layer=layer, length=length, masks=found))
        return
    typer.echo("\n".join(map(picture_text, found)), nl=False)
    hiding = [one for one in found if one.rows and one.keys != "full"]
    if hiding and all("." not in row[: query + 1] for one in hiding for query, row in enumerate(one.rows)):
        note(f"note: among {length} tokens nothing is hidden; a longer `--length` shows more")


def _tree(source: str, json: bool) -> None:
    from attnc.dsl.dump import tree_text

    text = tree_text(read_tree(source))
    if json:
        from attnc.cli.show_report import TextReport

        print_json(TextReport(stage="tree", text=text))
    else:
        typer.echo(text, nl=False)


def _spec(spec: Spec, plan: Plan | None, json: bool, tuning: FolderTuning | None = None) -> None:
    """`tuning`: that of a built folder; else what a build would put there."""
    from attnc.compiler.table import table
    from attnc.compiler.table_text import table_text

    if json:
        from attnc.cli.show_report import TableReport
        from attnc.codegen.tune.table import FolderTuning
        from attnc.compiler.causality import causality, refusals
        from attnc.compiler.laws import laws
        from attnc.compiler.unbuilt import unbuilt_names

        waiting = [] if plan is None else _unverified(spec, plan)
        tuning = tuning or (FolderTuning() if plan is None else _tuned(spec))
        budgets, owed = spec.budgets, laws(spec)
        print_json(
            TableReport(
                model=spec.model,
                rows=table(spec),
                budgets=budgets,
                recipe=spec.recipe,
                driver=spec.driver,
                unbuilt=unbuilt_names(spec),
                laws=owed,
                causality=causality(spec),
                refused=refusals(spec),
                plan=plan,
                tuning=tuning,
                unverified=waiting,
            )
        )
        return
    if plan is None:
        typer.echo(table_text(spec, width=_columns()), nl=False)
        return
    from attnc.cli.tuned import tuned_text
    from attnc.cli.verified import unverified_text
    from attnc.compiler.show import plan_text

    typer.echo(table_text(spec, width=_columns()).partition("\n\nlaws\n")[0])  # the laws are the spec's, whatever runs it
    blocks = tuned_text(plan, tuning or _tuned(spec))
    typer.echo("\n" + plan_text(plan) + blocks + unverified_text(_unverified(spec, plan)), nl=False)


def _columns() -> int:
    """Columns that a table may have: those of the terminal; in a file or a pipe as many as it wants."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNTRUNCATED


def _unverified(spec: Spec, plan: Plan) -> list[Unverified]:
    from attnc.cli.verified import unverified

    return unverified(plan, _layer_graph(spec), spec.model)


def _graph(spec: Spec, json: bool) -> None:
    graph = _layer_graph(spec)
    if json:
        from attnc.cli.graph_report import graph_report

        print_json(graph_report(graph))
    else:
        from attnc.compiler.show import graph_text

        typer.echo(graph_text(graph), nl=False)


def _module(source: str, folder: Path | None, device: str | None, asked: Mapping[str, tuple[str, ...]], json: bool) -> None:
    if folder is not None:
        text = (folder / "model.py").read_text("utf-8")
    else:
        from attnc.codegen.build import Options, plan_all, write_texts

        spec = read_spec(source)
        graph = _layer_graph(spec)
        options = Options(device=device_name(device), installed=asked["installed"], without=asked["without"])
        texts, _ = write_texts(spec, graph, plan_all(graph, options, cap=spec.model.score_cap is not None))
        text = texts["model.py"]
    if json:
        from attnc.cli.show_report import TextReport

        print_json(TextReport(stage="module", text=text))
    else:
        typer.echo(text, nl=False)


def _layer_graph(spec: Spec) -> Graph:
    from attnc.compiler import graph, passes

    return passes.run(graph.build(spec))


def _built(folder: Path) -> Built:
    """What a built folder says of itself."""
    from attnc.codegen.built import Built
    from attnc.compiler.data import from_json

    return from_json(Built, (folder / "plan.json").read_text("utf-8"))


def _tuned(spec: Spec) -> FolderTuning:
    from attnc.cli.tuned import tuned

    return tuned(_layer_graph(spec), spec.model)
