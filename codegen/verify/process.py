"""A process that is asked once and answers line by line, and that may crash or hang without harm to whoever asks."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

TAIL = 2000
"""Characters of a process's complaints that are looked at."""


@dataclass(frozen=True)
class Ended:
    """How a process went: its exit code, or a reason why it was ended; and the end of what it wrote to stderr."""

    code: int | None
    stderr: str

    @property
    def reason(self) -> str:
        """In a few words; empty where all went well."""
        if self.code is None:
            return "no answer within the time limit"
        if self.code == 0:
            return ""
        last = next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")
        how = f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"the process ended with {how}" + (f": {last[:200]}" if last else "")


def ask(command: Sequence[str], question: str, environment: Mapping[str, str], limit: float) -> Iterator[str | Ended]:
    """The lines of the answer as they come, then how it ended. After `limit` seconds without a line it is killed, with all
    that it started; so it is when the caller stops listening.
    """
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(  # noqa: S603 (our own commands)
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            _tell(child.stdin, question)
            in_time = yield from _lines(child.stdout, limit)
            code = _wait(child, limit) if in_time else None
        finally:
            _kill(child)
        complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - TAIL))
        yield Ended(code, complaints.read().decode("utf-8", "replace"))


def _tell(stdin: IO[bytes], question: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it ended before it read; how, is said at the end
        stdin.write(question.encode())
        stdin.close()


def _lines(stdout: IO[bytes], limit: float) -> Generator[str, None, bool]:
    """Whole lines until the end; whether it came in time."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                return False
            some = os.read(stdout.fileno(), 65536)
            if not some:
                return True
            *whole, rest = (rest + some).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole)


def _wait(child: subprocess.Popen[bytes], limit: float) -> int | None:
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.stdout is not None:
        child.stdout.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # also what it started and left behind
    child.wait()
