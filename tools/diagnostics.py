"""Writes docs/diagnostics.md from the pages of all codes."""

from __future__ import annotations

from pathlib import Path

from attnc.cli.pages import markdown

PATH = Path(__file__).parent.parent / "docs" / "diagnostics.md"

if __name__ == "__main__":
    PATH.write_text(markdown(), encoding="utf-8")
    print(f"wrote {PATH}")
