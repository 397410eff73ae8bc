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


NOT_THE_SPEC = {
    "A501": Exit.USAGE,
    "A502": Exit.USAGE,
    "A505": Exit.ENVIRONMENT,
    "A510": Exit.USAGE,
    "A511": Exit.ENVIRONMENT,
}
"""Diagnostics that say nothing about a spec: a path that names none, a disk that refuses."""


def exit_code(codes: Iterable[str]) -> Exit:
    """The exit code for diagnostics of these codes: the spec's, unless none of them is about a spec."""
    found = {NOT_THE_SPEC.get(code, Exit.SPEC) for code in codes}
    return Exit.SPEC if Exit.SPEC in found else min(found)
