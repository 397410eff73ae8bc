"""What the exit codes mean, and how a command stops with one."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command; an interrupt is 130, as everywhere."""

    OK = 0
    DIFFERENT = 1
    USAGE = 2
    SPEC = 3
    ENVIRONMENT = 4
    BUG = 5


class CommandError(Exception):
    """Ends the command: `message` says what is wrong, `help` what to do about it."""

    def __init__(self, code: Exit, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help = help


USAGE_CODES = {"A111", "A113", "A501", "A502", "A510", "A520", "A532", "A541", "A560", "A563", "A564", "A575", "A577"}
"""A path or an option that names the wrong thing."""

ENVIRONMENT_CODES = {"A505", "A511", "A513", "A519", "A531", "A533", "A550", "A565", "A576"}
"""A disk that refuses, a package that is missing, memory that is full, a damaged file of settings or of tuned blocks."""

SPEC_FILES = {"A503", "A504"}
"""Spec files that hold no text; other A5 codes are about weights, and A4 codes about a plan that `--strict` refuses."""


def exit_code(codes: Iterable[str]) -> Exit:
    """The exit code for diagnostics of these codes: the spec's, unless none of them is about a spec."""
    found = {_exit_code(code) for code in codes}
    return Exit.SPEC if Exit.SPEC in found else max(found)


def _exit_code(code: str) -> Exit:
    if code in USAGE_CODES:
        return Exit.USAGE
    if code in ENVIRONMENT_CODES:
        return Exit.ENVIRONMENT
    return Exit.DIFFERENT if code.startswith(("A4", "A5")) and code not in SPEC_FILES else Exit.SPEC
