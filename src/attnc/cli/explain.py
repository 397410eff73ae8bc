"""`attnc explain`: the page of a code, or all codes."""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json
from attnc.cli.output import print_json, styled
from attnc.cli.pages import SECTIONS, Page, pages
from attnc.compiler.value import Value
from attnc.dsl.examples import MODEL, whole

HARD_SPACE = "\x00"
"""Stands for a blank at which no line is broken; in no page."""

WIDEST = 96
"""Columns of running text: longer lines are hard to read, whatever the terminal."""


class ExampleReport(Value):
    """Whole files: the wrong one gives the code, the right one checks."""

    wrong: str
    right: str


class PageReport(Value):
    """One code."""

    code: str
    title: str
    text: str
    example: ExampleReport | None


class PagesReport(Value):
    """What `attnc explain --json` prints."""

    schema_version: int = 1
    pages: list[PageReport]


def complete_code(incomplete: str) -> list[tuple[str, str]]:
    """Codes that begin so, with their titles, for the shell."""
    return [(page.code, page.title) for page in pages().values() if page.code.startswith(incomplete.upper())]


def explain(
    code: Annotated[
        str | None,
        typer.Argument(metavar="CODE", help="Such as A204; all codes without it.", autocompletion=complete_code),
    ] = None,
    json: Json = False,
) -> None:
    """Explain the code of a mistake, with a wrong and a right example."""
    found = pages()
    wanted = list(found.values()) if code is None else [_page(code, found)]
    if json:
        print_json(PagesReport(pages=[_report(page) for page in wanted]))
    elif code is None:
        _print_list(wanted)
    else:
        _print_page(wanted[0])


def _page(code: str, found: dict[str, Page]) -> Page:
    asked = code.strip("[]").upper()
    if asked in found:
        return found[asked]
    near = _near(asked, found)
    advice = f"did you mean `attnc explain {near}`, {found[near].title}?" if near else "`attnc explain` lists all codes"
    raise CommandError(Exit.USAGE, f"there is no code `{code}`", advice)


def _near(asked: str, codes: Iterable[str]) -> str:
    """A number's neighbour; for other spellings the code that looks most like it; empty if none does."""
    digits = re.fullmatch(r"[AE]?0?(\d{3})", asked)
    if digits:
        return min(codes, key=lambda code: (code[1] != digits[1][0], abs(int(code[1:]) - int(digits[1]))))
    return next(iter(difflib.get_close_matches(asked, codes, n=1, cutoff=0.5)), "")


def _report(page: Page) -> PageReport:
    example = page.example and ExampleReport(wrong=whole(page.example.wrong), right=whole(page.example.right))
    return PageReport(code=page.code, title=page.title, text=page.text, example=example)


def _print_list(found: list[Page]) -> None:
    section = ""
    for page in found:
        if page.code[:2] != section:
            typer.echo("\n" * bool(section) + SECTIONS[page.code[:2]].lower())
            section = page.code[:2]
        typer.echo(f"  {styled(page.code, bold=True)}  {page.title}")


def _print_page(page: Page) -> None:
    typer.echo(f"{styled(page.code, bold=True)}  {page.title}\n")
    typer.echo(_wrapped(page.text))
    if page.example is None:
        return
    for title, colour, text in (("wrong", "red", page.example.wrong), ("right", "green", page.example.right)):
        typer.echo(f"\n{styled(title, fg=colour, bold=True)}\n" + textwrap.indent(text.rstrip("\n"), "    "))
    if page.example.wrong != whole(page.example.wrong):
        typer.echo("\n" + _wrapped("Both stand below a model such as"))
        typer.echo(textwrap.indent(MODEL.rstrip("\n"), "    "))


def _wrapped(text: str) -> str:
    """Lines of the terminal's width; what stands in back quotes stays on one line."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    whole_code = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", HARD_SPACE), text)
    return textwrap.fill(whole_code, width, break_long_words=False, break_on_hyphens=False).replace(HARD_SPACE, " ")
