"""`attnc lsp`: the language server, for editors to start."""

from __future__ import annotations


def lsp() -> None:
    """Serve an editor over the standard input and output (docs/editors.md)."""
    from attnc.lsp.server import server

    server().start_io()
