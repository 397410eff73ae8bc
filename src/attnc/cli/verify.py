"""`attnc verify`: every kernel of a built folder against the reference on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import NVIDIA, Json, built_folder
from attnc.cli.output import note, print_json, print_pairs, styled

if TYPE_CHECKING:
    from attnc.codegen.verify.report import Message, Row, VerifyReport

DTYPES = ("bfloat16", "float16", "float32")
HEADINGS = ("kernel", "dtype", "inputs", "cases", "error", "PyTorch's", "allowed", "verdict")
NUMBERS = frozenset(HEADINGS[3:7])


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that attnc build wrote.", show_default=False)],
    device: Annotated[
        str | None,
        typer.Option(help="cuda, cuda:1, or cpu: Triton's interpreter; the GPU where there is one.", show_default=False),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="T,T", help=f"Of {', '.join(DTYPES)}; all on a GPU, float32 in the interpreter.", show_default=False
        ),
    ] = "",
    kernel: Annotated[
        list[str], typer.Option("--kernel", metavar="NAME", help="Only this one; may be given several times.")
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Compare every kernel of a built folder with the reference."""
    built_folder(folder)
    where = chosen_device(device)
    known = sorted(path.stem for path in (folder / "kernels").glob("*_*[0-9].py"))
    unknown = [name for name in kernel if name not in known]
    if unknown:
        raise CommandError(Exit.USAGE, f"{folder} has no kernel {unknown[0]}", f"it has {', '.join(known) or 'none'}")
    report = run(folder, where, chosen_dtypes(dtype, where), tuple(kernel))
    if json:
        print_json(report)
    else:
        _print(report)
    refuse(report)


def run(folder: Path, device: str, dtypes: tuple[str, ...], only: tuple[str, ...]) -> VerifyReport:
    """The report; progress on a terminal. Raises SpecError A403 where nothing runs here."""
    from attnc.codegen.problem import complaint
    from attnc.codegen.verify.verify import CannotRunError, verify
    from attnc.dsl import SpecError

    try:
        return verify(folder, device, dtypes, _progress if sys.stderr.isatty() else lambda _: None, only=only)
    except CannotRunError as error:
        help_line = "attnc doctor says what this machine lacks; `--device cpu` runs the kernels in Triton's interpreter"
        raise SpecError([complaint("A403", f"no kernel can be run on {device}: {error}", folder, help_line)]) from error


def chosen_device(given: str | None, without: str = "--device cpu runs kernels in Triton's interpreter") -> str:
    """As torch names it; the GPU where there is one. `without`: the advice where there is none."""
    has_gpu = NVIDIA.exists() and _torch_sees_one()
    device = given or ("cuda" if has_gpu else "cpu")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise CommandError(Exit.USAGE, f"there is no device {device}", "--device takes cpu, cuda or cuda:1")
    if kind == "cuda" and not has_gpu:
        raise CommandError(Exit.ENVIRONMENT, "torch sees no GPU here", without)
    return device if kind == "cuda" else "cpu"


def chosen_dtypes(text: str, device: str) -> tuple[str, ...]:
    """Those named in `float32,bfloat16`; those that the device can otherwise."""
    from attnc.codegen.verify.verify import IN_INTERPRETER, numpy_too_new

    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in found if word not in DTYPES]
    if unknown:
        raise CommandError(Exit.USAGE, f"there is no number type {unknown[0]}", f"--dtype takes {', '.join(DTYPES)}")
    if device != "cpu":
        return found or DTYPES
    if unable := [word for word in found if word not in IN_INTERPRETER]:
        help_line = f"--dtype takes {', '.join(IN_INTERPRETER)} without a GPU"
        raise CommandError(Exit.USAGE, f"Triton's interpreter gets {unable[0]} wrong", help_line)
    if new := numpy_too_new():
        message = f"Triton's interpreter fails with numpy {new}"
        raise CommandError(Exit.ENVIRONMENT, message, "pip install 'numpy<2.4', or verify on a GPU")
    return found or IN_INTERPRETER[:1]


def refuse(report: VerifyReport) -> None:
    """Raises SpecError A402 if any kernel is wrong."""
    from attnc.codegen.problem import complaint
    from attnc.dsl import SpecError

    wrong = list(dict.fromkeys(row.kernel for row in report.rows if row.verdict == "wrong"))
    if wrong:
        first = next(row for row in report.rows if row.verdict == "wrong")
        message = f"{', '.join(wrong)}: wrong on this machine ({first.dtype}, {first.inputs}: {first.reason})"
        help_line = "`attnc explain A402`; load(use='torch') does without kernels"
        raise SpecError([complaint("A402", message, report.folder, help_line)])


def _torch_sees_one() -> bool:
    import torch

    return torch.cuda.is_available()


def _progress(message: Message) -> None:
    if message.row is not None:
        note(f"{message.row.kernel} {message.row.dtype}, {message.row.inputs}: {message.row.verdict}")


def _print(report: VerifyReport) -> None:
    for decision in report.decisions:
        note(f"note: {decision}")
    if not report.kernels:
        typer.echo("the folder has no generated kernels: its model runs on PyTorch's own and on references")
        return
    machine = report.machine
    assert machine is not None, "whoever has kernels has said where they run"
    print_pairs(
        [("folder", report.folder), ("machine", f"{machine.device}, torch {machine.torch}, triton {machine.triton}")]
        + [("kernel", f"{one.kernel}: {', '.join(one.launches)}") for one in report.kernels]
    )
    typer.echo()
    lines = table([HEADINGS, *map(_cells, report.rows)], NUMBERS)
    typer.echo(lines[0])
    for line, row in zip(lines[1:], report.rows, strict=True):
        typer.echo(line if row.verdict == "right" else f"{styled(line, fg='red')}\n    {row.reason}")
    right = sum(row.verdict == "right" for row in report.rows)
    rule = f"at most {report.limit:g} times as far from float64 as PyTorch's own, and exact where integers are"
    if any(one.skeleton.startswith("scan_") for one in report.kernels):
        rule += "; of matrix states PyTorch's own is the formula in a kernel's roundings"
    typer.echo(f"\n{right} of {len(report.rows)} right: {rule}")


def table(rows: list[tuple[str, ...]], numbers: frozenset[str]) -> list[str]:
    """Columns aligned, those under one of the headings `numbers` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shapes = [f"{'>' if heading in numbers else '<'}{width}" for heading, width in zip(rows[0], widths, strict=True)]
    return ["  ".join(map(format, row, shapes)).rstrip() for row in rows]


def _cells(row: Row) -> tuple[str, ...]:
    errors = ("" if number is None else f"{number:.2g}" for number in (row.error, row.torch_error, row.allowed))
    return (row.kernel, row.dtype, row.inputs, str(row.cases), *errors, row.verdict)
