"""These tests take a third of the time so."""

from __future__ import annotations

from attnc.codegen.triton.interpreting import quicken

quicken()
