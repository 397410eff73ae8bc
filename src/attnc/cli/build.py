"""`attnc build`: a spec becomes a folder that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import attnc
from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Device, Diagnostics, Json, With, Without, device_name, in_its_text, providers, read_spec
from attnc.cli.output import Format, bytes_text, note, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.codegen.build import Report
    from attnc.compiler.policy import Policy
    from attnc.compiler.spec import Spec

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
LENGTHS = {"8k": 8192, "128k": 131072, "1M": 1048576}
CACHE_TYPE = "bfloat16"
KINDS = 3
"""Alternatives of a policy that are printed, those of most KV groups."""

TOKENS = 64
"""Of the sequences that `--reduce` makes room for."""


def build(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A spec; - reads the standard input.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder; replaced only if a build wrote it.")],
    device: Device = None,
    target: Annotated[
        str, typer.Option(metavar="T,T", help=f"Also compile ahead for {', '.join(TARGETS)}.", show_default=False)
    ] = "",
    weights: Annotated[Path | None, typer.Option(metavar="DIR", help="Take weights and tokenizer from there.")] = None,
    init: Annotated[
        int | None, typer.Option(metavar="SEED", help="Start weights from a seed; with --weights what they lack.")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="model.KEY=VALUE", help="Replace a setting of the model.")
    ] = [],  # noqa: B006
    reduce: Annotated[
        int | None,
        typer.Option(min=8, metavar="[TOKENS]", help=f"Make it small first; {TOKENS} tokens unless given.", show_default=False),
    ] = None,
    wanted: With = "",
    without: Without = "",
    tuned: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Take blocks from this table of attnc tune kernels; else from your own.", show_default=False
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What attnc tune solve decided; else that beside the spec made for the device. none: the spec's defaults.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse to run a reference where no kernel can.")] = False,
    diagnostics: Diagnostics = Format.text,
    json: Json = False,
) -> None:
    """Write a folder of PyTorch and kernels."""
    spec = read_spec(file, overrides(settings))
    decided = _policy(file, policy, spec, device_name(device), reduced=reduce is not None)
    if reduce is not None:
        spec = _reduced(spec, reduce)
    with in_its_text(file):
        report = attnc.build(
            spec,
            out,
            device=device_name(device),
            targets=targets(target),
            weights=weights,
            init=init,
            strict=strict,
            tuned=tuned or None,
            policy=decided,
            **providers(wanted, without),
        )
    for decision in report.decisions:
        note(f"note: {decision}")
    if json:
        print_json(report.built)
    else:
        _print(spec, report)


def _policy(file: str, given: str | None, spec: Spec, device: str, *, reduced: bool) -> Path | None:
    """The policy that a build takes; a note says where the spec's defaults hold though something could be decided."""
    from attnc.compiler import policies
    from attnc.compiler.units import Units

    if given not in (None, "none"):
        if reduced:
            raise CommandError(Exit.USAGE, "--policy and --reduce exclude each other", "leave one of them out")
        return Path(str(given))
    own, others = (None, ()) if given == "none" or file == "-" else policies.beside(Path(file), device)
    if own is not None and not reduced:
        note(f"note: {own[0].name} decides{'' if own[1].proved else '; it is not proved (attnc tune prove)'}")
        return own[0]
    count = Units(spec).undecided() if spec.budgets or _chooses(spec) else 0
    if not count:
        return None
    names = ", ".join(path.name for path in others)
    why = "--reduce leaves other layers, and " if own else f"{names}: made for another device, and " if others else ""
    note(f"note: {why}the spec's defaults hold in {count} parts that attnc tune could decide")
    return None


def _chooses(spec: Spec) -> bool:
    from attnc.compiler.spec import Choose
    from attnc.compiler.walk import every

    return any(isinstance(one, Choose) for layer in spec.layers for one in every(layer.mixer))


def with_tokens(arguments: list[str]) -> list[str]:
    """Arguments in which a bare `--reduce` has its default: `--reduce` may stand alone or before a number."""
    followed = zip(arguments, [*arguments[1:], ""], strict=False)
    return [f"--reduce={TOKENS}" if word == "--reduce" and not after.isdigit() else word for word, after in followed]


def overrides(settings: list[str]) -> dict[str, str]:
    """`model.KEY=VALUE` options as a mapping."""
    for text in settings:
        if "=" not in text:
            raise CommandError(Exit.USAGE, f"--set {text} has no value", "write --set model.KEY=VALUE")
    return dict(text.split("=", 1) for text in settings)


def targets(text: str) -> tuple[str, ...]:
    """The architectures named in `sm_80,sm_90`."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    unknown = [word for word in found if word not in TARGETS]
    if unknown:
        raise CommandError(Exit.USAGE, f"there is no target {unknown[0]}", f"--target takes {', '.join(TARGETS)}")
    return found


def _reduced(spec: Spec, tokens: int) -> Spec:
    from attnc.compiler.reduce import reduce

    small, changes = reduce(spec, tokens)
    note(f"reduced {', '.join(changes)}")
    return small


def _print(spec: Spec, report: Report) -> None:
    from attnc.compiler.cache_spec import full_attention_bytes, row_bytes

    built = report.built
    pairs = [
        ("folder", str(report.folder)),
        ("model", f"{built.name}, {len(spec.layers)} layers, {built.parameters:,} parameters"),
        ("kernels", f"{len(built.kernels)} generated" if built.kernels else "none generated"),
    ]
    print_pairs([*pairs, ("policy", _taken(built.policy))] if built.policy else pairs)
    typer.echo(f"\ncache of one sequence, {CACHE_TYPE}")
    ours = {name: sum(row_bytes(row, tokens) for row in built.cache) for name, tokens in LENGTHS.items()}
    full = {name: full_attention_bytes(spec, tokens, CACHE_TYPE) for name, tokens in LENGTHS.items()}
    for title, row in (("tokens", dict.fromkeys(LENGTHS, None)), ("this model", ours), ("full attention", full)):
        cells = [name if size is None else bytes_text(size) for name, size in row.items()]
        typer.echo(f"  {title:<14}" + "".join(f"{cell:>11}" for cell in cells))
    shares = "".join(f"{ours[name] / full[name]:>11.1%}" if full[name] else f"{'':>11}" for name in LENGTHS)
    typer.echo(f"  {'share':<14}{shares}")
    if built.resources:
        typer.echo("\ncompiled ahead")
        for line in _resources(report):
            typer.echo(f"  {line}")


def _taken(policy: Policy) -> str:
    """What a policy decides, in a line: by whom, for what, and how many KV groups have each alternative."""
    counts: dict[str, int] = {}
    for row in policy.settings:
        words = [*row.words.values(), *(f"{path.rpartition('.')[2]}={number:g}" for path, number in row.budgets.items())]
        name = " ".join(words) or "as the spec says"
        counts[name] = counts.get(name, 0) + row.last - row.first + 1
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda one: -one[1])
    most = [f"{count} {name}" for name, count in ranked[:KINDS]] + [f"{len(ranked) - KINDS} more"] * (len(ranked) > KINDS)
    proved = "proved" if policy.proved else "not proved"
    return f"{policy.made_by}, for {policy.machine.device}, {proved}; of {total} KV groups {', '.join(most)}"


def _resources(report: Report) -> list[str]:
    """One line a compiled kernel."""
    rows = [("file", "kernel", "target", "registers", "shared", "spills")]
    for used in report.built.resources:
        rows.append(
            (used.file, used.kernel, used.target, str(used.registers), bytes_text(used.shared), bytes_text(used.spills))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
