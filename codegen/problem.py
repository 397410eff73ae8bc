"""Diagnostics about files and plans, which have no place in a spec's text."""

from __future__ import annotations

from pathlib import Path

from attnc.dsl import Diagnostic, Source, Span
from attnc.dsl.codes import Code

CODES: dict[str, Code] = {
    "A401": Code(
        "a mix has no kernel and `--strict` was asked for",
        "Without `--strict` the reference runs in its place: right, slow, and printed as a decision. The message says why each "
        "kernel was refused.",
    ),
    "A402": Code(
        "a kernel is wrong",
        "`attnc verify` compared the folder's kernels with the reference on this machine. The table says which one failed, on "
        "which inputs, and how. Meanwhile `attnc.load(DIR, use='torch')` and `attnc run --reference` do without kernels. One "
        "that nobody edited and that is wrong is a mistake of ours or of a Triton version: please report the table.",
    ),
    "A403": Code(
        "kernels cannot be run",
        "No process came as far as a kernel; the message says how it ended. `attnc doctor` says what this machine lacks.",
    ),
    "A510": Code(
        "the output folder holds other files",
        "A build replaces only what a build wrote: `plan.json` lists its files. Name another folder with `-o`.",
    ),
    "A511": Code("the output folder cannot be written", "The system's reason is shown. What was there before is there still."),
    "A513": Code(
        "a table of tuned blocks that cannot be read",
        "`attnc tune kernels` keeps one file for each GPU and Triton version. A damaged one is never half used: move it away.",
    ),
    "A512": Code(
        "the weights do not fit the spec",
        "Names, shapes and number formats of the tensors in `--weights` are those of the model; the message says what differs.",
    ),
}


def complaint(code: str, message: str, path: Path | str, help_line: str) -> Diagnostic:
    """A diagnostic whose place is a file or folder as a whole."""
    return Diagnostic(code, message, Span(Source(str(path), ""), 0, 0), help=help_line)
