"""`attnc lsp`: answers an editor over the standard input and output. Texts are never read from disk."""

from __future__ import annotations

import asyncio

from lsprotocol import types
from pygls.lsp.server import LanguageServer

import attnc
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.fixes import apply_fixes
from attnc.dsl.reformat import reformatted
from attnc.dsl.source import Source, Span
from attnc.lsp.completion import completions
from attnc.lsp.document import Document, mix_names, read, word_at
from attnc.lsp.hover import hover
from attnc.lsp.positions import Positions
from attnc.lsp.symbols import symbols

PAUSE = 0.15
"""Seconds without a keystroke before a text is checked."""

Request = types.HoverParams | types.CompletionParams | types.DefinitionParams


class Server(LanguageServer):
    """One editor's texts; whole texts are sent, so no position of an edit can be misunderstood."""

    def __init__(self) -> None:
        super().__init__("attnc", attnc.__version__, text_document_sync_kind=types.TextDocumentSyncKind.Full)
        self.read: dict[str, Document] = {}
        self.waiting: dict[str, asyncio.Task[None]] = {}

    def source(self, uri: str) -> Source:
        """The text as the editor has it now."""
        return Source(uri.rpartition("/")[2], self.workspace.get_text_document(uri).source)

    def positions(self, source: Source) -> Positions:
        """Offsets and positions of a text, in the units agreed on."""
        return Positions(source.text, str(getattr(self.workspace.position_encoding, "value", "utf-16")))

    def document(self, uri: str) -> Document:
        """What the text of now means; read once."""
        source, known = self.source(uri), self.read.get(uri)
        if known is None or known.source != source:
            self.read[uri] = known = read(source)
        return known

    async def publish(self, uri: str, pause: float) -> None:
        """Checks a text when nothing was typed for a while."""
        await asyncio.sleep(pause)
        document = self.document(uri)
        at = self.positions(document.source)
        found = [_diagnostic(one, uri, at) for one in document.found] + [_remark(one, at) for one in document.unbuilt]
        self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, found))

    def check_soon(self, uri: str, pause: float) -> None:
        """Once, however often it is asked for in the meantime."""
        self.forget(uri)
        self.waiting[uri] = asyncio.get_running_loop().create_task(self.publish(uri, pause))

    def forget(self, uri: str) -> None:
        """Nothing is checked that is no more."""
        if uri in self.waiting:
            self.waiting.pop(uri).cancel()


def server() -> Server:
    """A server with all that it can do."""
    ours = Server()

    @ours.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
        ls.check_soon(params.text_document.uri, 0)

    @ours.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
        ls.check_soon(params.text_document.uri, PAUSE)

    @ours.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
        uri = params.text_document.uri
        ls.forget(uri)
        ls.read.pop(uri, None)
        ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))

    ours.feature(types.TEXT_DOCUMENT_HOVER)(_hover)
    ours.feature(types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(trigger_characters=["=", ":", "|", "(", "["]))(
        _complete
    )
    ours.feature(types.TEXT_DOCUMENT_DEFINITION)(_define)
    ours.feature(types.TEXT_DOCUMENT_FORMATTING)(_format)
    ours.feature(types.TEXT_DOCUMENT_DOCUMENT_SYMBOL)(_symbols)
    kinds = [types.CodeActionKind.QuickFix, types.CodeActionKind.SourceFixAll]
    ours.feature(types.TEXT_DOCUMENT_CODE_ACTION, types.CodeActionOptions(kinds))(_actions)
    return ours


def _hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
    document = ls.document(params.text_document.uri)
    text = hover(document, ls.positions(document.source).offset(params.position))
    return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, text)) if text else None


def _complete(ls: Server, params: types.CompletionParams) -> types.CompletionList:
    source = ls.source(params.text_document.uri)
    found = completions(source, ls.positions(source).offset(params.position))
    return types.CompletionList(is_incomplete=False, items=found)


def _define(ls: Server, params: types.DefinitionParams) -> types.Location | None:
    source = ls.source(params.text_document.uri)
    at = ls.positions(source)
    word = word_at(source, at.offset(params.position))
    named = mix_names(source).get(word.text) if word else None
    return types.Location(params.text_document.uri, at.range(named)) if named else None


def _format(ls: Server, params: types.DocumentFormattingParams) -> list[types.TextEdit]:
    """Nothing where the text has mistakes: they are shown already."""
    source = ls.source(params.text_document.uri)
    try:
        text = reformatted(source)
    except SpecError:
        return []
    return [types.TextEdit(ls.positions(source).whole(), text)] if text != source.text else []


def _symbols(ls: Server, params: types.DocumentSymbolParams) -> list[types.DocumentSymbol]:
    source = ls.source(params.text_document.uri)
    return symbols(source, ls.positions(source))


def _actions(ls: Server, params: types.CodeActionParams) -> list[types.CodeAction]:
    """The fixes of the mistakes in the range, and all fixes of the text at once."""
    uri = params.text_document.uri
    document = ls.document(uri)
    at = ls.positions(document.source)
    start, end = at.offset(params.range.start), at.offset(params.range.end)
    fixable = [one for one in document.found if one.fix and one.fix.span.source == document.source]
    actions = [
        types.CodeAction(
            title=one.help.split("\n")[0] or f"fix: {one.message}",
            kind=types.CodeActionKind.QuickFix,
            diagnostics=[_diagnostic(one, uri, at)],
            is_preferred=True,
            edit=types.WorkspaceEdit({uri: [types.TextEdit(at.range(one.fix.span), one.fix.text)]}),
        )
        for one in fixable
        if one.fix and one.span.start <= end and start <= one.span.end
    ]
    if fixable:
        text = apply_fixes(document.source, fixable)[0].text
        edit = types.WorkspaceEdit({uri: [types.TextEdit(at.whole(), text)]})
        actions.append(types.CodeAction("fix all that can be fixed", types.CodeActionKind.SourceFixAll, edit=edit))
    return actions


def _diagnostic(found: Diagnostic, uri: str, at: Positions) -> types.Diagnostic:
    message = (
        found.message + (f"\nexpected: {found.expected}" if found.expected else "") + (f"\n{found.help}" * bool(found.help))
    )
    own = [(text, span) for text, span in found.notes if span.source == found.span.source]
    return types.Diagnostic(
        range=at.range(_visible(found.span)),
        message=message,
        severity=types.DiagnosticSeverity.Error,
        code=found.code,
        source="attnc",
        related_information=[
            types.DiagnosticRelatedInformation(types.Location(uri, at.range(span)), text) for text, span in own
        ],
    )


def _remark(found: Diagnostic, at: Positions) -> types.Diagnostic:
    """What is right, but not built yet: the whole line."""
    line = found.span.line - 1
    end = at.starts[line + 1] if line + 1 < len(at.starts) else len(at.text)
    text = at.text[at.starts[line] : end]
    span = Span(found.span.source, at.starts[line] + len(text) - len(text.lstrip()), at.starts[line] + len(text.rstrip()))
    severity = types.DiagnosticSeverity.Information
    return types.Diagnostic(at.range(span), found.message, severity=severity, code=found.code, source="attnc")


def _visible(span: Span) -> Span:
    """An editor underlines nothing between two characters: then the one before."""
    return span if span.end > span.start else Span(span.source, max(0, span.start - 1), span.end)
