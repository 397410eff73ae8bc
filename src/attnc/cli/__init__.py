"""The command `attnc`: one file a command, and in this one what happens when a command fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import signal
import sys
from typing import TYPE_CHECKING

from attnc.cli.exits import CommandError, Exit, exit_code

if TYPE_CHECKING:
    from attnc.cli.output import Format

FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
INTERRUPTED = 130
INSTALLABLE = {
    "torch": "torch",
    "triton": "triton",
    "safetensors": "safetensors",
    "transformers": "'attnc[hf]'",
    "gguf": "'attnc[hf]'",
    "tokenizers": "'attnc[hf]'",
    "matplotlib": "'attnc[plot]'",
    "scipy": "'attnc[tune]'",
}


def main() -> None:
    """The process `attnc`: runs one command and ends with one of `Exit`'s codes."""
    gc.set_threshold(100_000, 20, 20)  # imports make many objects and no garbage: looking for some takes a twentieth of a check
    with contextlib.suppress(AttributeError):  # no such signal on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `attnc show x | head` ends like every other tool
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; whatever went wrong is said on stderr."""
    from attnc.cli.options import Chosen

    chosen = Chosen()
    try:
        from attnc.cli.app import app
        from attnc.cli.build import with_tokens

        app(with_tokens(arguments), prog_name="attnc", obj=chosen)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Exit.OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return complain_of(error, chosen.diagnostics)
    raise AssertionError("typer ends every command with SystemExit")


def complain_of(error: Exception, form: Format) -> int:
    """Says on stderr what went wrong and returns the exit code."""
    from attnc.cli.output import complain, print_error
    from attnc.dsl.diagnostic import SpecError

    if isinstance(error, CommandError):
        complain(error.message, error.help)
        return error.code
    if isinstance(error, SpecError):
        print_error(error, form)
        return exit_code(diagnostic.code for diagnostic in error.diagnostics)
    if isinstance(error, ModuleNotFoundError) and error.name in INSTALLABLE:
        complain(
            f"{error.name} is not installed", f"pip install {INSTALLABLE[error.name]}; attnc doctor says what else is missing"
        )
        return Exit.ENVIRONMENT
    code = str(getattr(error, "code", ""))
    if re.fullmatch(r"A5\d\d", code):  # a task's, or a built folder's own, whose classes lie in the folder
        complain(str(error), "build with --weights DIR or --init SEED" if code == "A541" else getattr(error, "help", None))
        return exit_code([code])
    if isinstance(error, OSError) and error.errno in FULL_OR_FORBIDDEN:
        where = f": {error.filename}" if error.filename else ""
        complain(f"{error.strerror}{where}", "nothing was replaced" if error.filename else None)
        return Exit.ENVIRONMENT
    return _apologise(error)


def _apologise(error: Exception) -> int:
    import tempfile
    import traceback

    from attnc.cli.output import complain

    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="attnc-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"{' '.join(sys.argv)}\n\n{text}")
    except OSError:
        sys.stderr.write(text)
        complain("this is a mistake in attnc, not in your spec; we are sorry")
    else:
        complain("this is a mistake in attnc, not in your spec; we are sorry", f"please report it with {file.name}")
    return Exit.BUG
