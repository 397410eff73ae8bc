"""What the exit codes mean, and how a command stops with one."""

from __future__ import annotations

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
