"""Diagnostics for programs: LSP's shape as JSON, and workflow commands of GitHub's runners."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from attnc.compiler.value import Value
from attnc.dsl.diagnostic import Diagnostic, Edit
from attnc.dsl.source import Source, Span

Severity = Literal[1, 3]
"""LSP's, as far as they are used: an error, an information."""

_LINE_END = re.compile(r"\r\n|\n|\r")


class Position(Value):
    """Both count from 0; characters are UTF-16 units."""

    line: int
    character: int


class Range(Value):
    """The end is not part of it."""

    start: Position
    end: Position


class Location(Value):
    """A range of a file."""

    uri: str
    range: Range


class RelatedInformation(Value):
    """Another place that matters."""

    location: Location
    message: str


class TextEdit(Value):
    """Put `newText` where `range` is."""

    range: Range
    newText: str  # noqa: N815 LSP's names have humps


class Fix(Value):
    """Edits that belong together; `title` is what an editor's menu says."""

    title: str
    edits: list[TextEdit]


class Data(Value):
    """What LSP has no field for."""

    expected: str
    help: str
    fixes: list[Fix]


class LspDiagnostic(Value):
    """One mistake, as `textDocument/publishDiagnostics` would send it."""

    range: Range
    severity: Severity
    code: str
    source: Literal["attnc"] = "attnc"
    message: str
    relatedInformation: list[RelatedInformation]  # noqa: N815
    data: Data


class FileDiagnostics(Value):
    """All mistakes of one file, perhaps none."""

    uri: str
    file: str
    diagnostics: list[LspDiagnostic]


class DiagnosticsReport(Value):
    """What `--diagnostics json` prints."""

    schema_version: int = 1
    files: list[FileDiagnostics]


def diagnostics_report(
    files: Iterable[str], mistakes: Iterable[Diagnostic], remarks: Iterable[Diagnostic] = ()
) -> DiagnosticsReport:
    """One row for each of `files`, in order, and one for every other text that a diagnostic is about."""
    rows: dict[str, list[LspDiagnostic]] = {name: [] for name in files}
    levels: tuple[tuple[Severity, Iterable[Diagnostic]], ...] = ((1, mistakes), (3, remarks))
    for severity, found in levels:
        for diagnostic in found:
            rows.setdefault(diagnostic.span.source.name, []).append(lsp(diagnostic, severity))
    return DiagnosticsReport(files=[FileDiagnostics(uri=uri(name), file=name, diagnostics=row) for name, row in rows.items()])


def lsp(diagnostic: Diagnostic, severity: Severity = 1) -> LspDiagnostic:
    """One diagnostic in LSP's shape. The message holds what was expected and the help, for editors that show nothing else."""
    parts = [diagnostic.message]
    parts += [f"expected: {diagnostic.expected}"] * bool(diagnostic.expected) + [f"help: {diagnostic.help}"] * bool(
        diagnostic.help
    )
    return LspDiagnostic(
        range=range_of(diagnostic.span),
        severity=severity,
        code=diagnostic.code,
        message="\n".join(parts),
        relatedInformation=[
            RelatedInformation(location=Location(uri=uri(span.source.name), range=range_of(span)), message=text)
            for text, span in diagnostic.notes
        ],
        data=Data(
            expected=diagnostic.expected,
            help=diagnostic.help,
            fixes=[_fix(diagnostic.fix)] if diagnostic.fix else [],
        ),
    )


def uri(name: str) -> str:
    """A file's address; a text that is no file (the standard input, a `--set`) has one of its own."""
    path = Path(name)
    return path.absolute().as_uri() if path.exists() else f"attnc:{quote(name)}"


def range_of(span: Span) -> Range:
    """Lines end with `\\r\\n`, `\\n` or `\\r`, as LSP says."""
    return Range(start=_position(span.source, span.start), end=_position(span.source, span.end))


def fix_title(edit: Edit) -> str:
    """What the edit does, in a few words."""
    old, new = _short(edit.span.text), _short(edit.text)
    if not old:
        return f"insert `{new}`"
    return f"replace `{old}` by `{new}`" if new else f"delete `{old}`"


def github(diagnostic: Diagnostic, level: Literal["error", "notice"] = "error") -> str:
    """One line that GitHub's runners show beside the source."""
    source = diagnostic.span.source
    line, column = source.line_and_column(diagnostic.span.start)
    end_line, end_column = source.line_and_column(diagnostic.span.end)
    properties = {"file": source.name, "line": line, "endLine": end_line, "col": column, "endColumn": end_column}
    properties["title"] = f"attnc {diagnostic.code}"
    if end_line != line:  # columns have a meaning within one line only
        del properties["endColumn"]
    listed = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in properties.items())
    help_lines = f"\nhelp: {diagnostic.help}" if diagnostic.help else ""
    return f"::{level} {listed}::{_escaped(diagnostic.message + help_lines)}"


def _escaped(text: str, more: str = "") -> str:
    """`%`, line ends, and `more` as the runners want them."""
    return "".join(f"%{ord(sign):02X}" if sign in f"%\r\n{more}" else sign for sign in text)


def _fix(edit: Edit) -> Fix:
    return Fix(title=fix_title(edit), edits=[TextEdit(range=range_of(edit.span), newText=edit.text)])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:37] + "..."


def _position(source: Source, offset: int) -> Position:
    line, begin = 0, 0
    for end in _LINE_END.finditer(source.text):
        if end.end() > offset:
            break
        line, begin = line + 1, end.end()
    units = len(source.text[begin:offset].encode("utf-16-le", "surrogatepass")) // 2
    return Position(line=line, character=units)
