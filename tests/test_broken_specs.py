"""Twelve specs as newcomers break them, corrected by nothing but what the messages say.

A fix is made where a message has one. Elsewhere the first message's help line is followed to the letter: "write `X`" and "the
nearest value allowed is `X`" put X in place of what the carets mark; "add `X`" puts X before the next closing brace.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attnc.compiler import check_text
from attnc.dsl import Diagnostic, Source, SpecError, parse
from attnc.dsl.fixes import apply_fixes
from attnc.dsl.format import print_file

FOLDER = Path(__file__).parent / "broken"
BROKEN = sorted(path.stem for path in FOLDER.glob("*.attn"))

PLACED = re.compile(r"(?:write|the nearest value allowed is) `([^`]+)`")
ADDED = re.compile(r"add `([^`]+)`")


def mistakes(text: str) -> tuple[Diagnostic, ...]:
    try:
        check_text(text, "broken.attn")
    except SpecError as error:
        return error.diagnostics
    return ()


def followed(text: str, one: Diagnostic) -> str:
    """The text after what a help line says."""
    if placed := PLACED.match(one.help):
        return text[: one.span.start] + placed[1] + text[one.span.end :]
    added = ADDED.match(one.help)
    assert added, f"a newcomer would not know what to write: {one.render()}"
    brace = text.index("}", one.span.end)
    return f"{text[:brace].rstrip()}\n  {added[1]}\n{text[brace:]}"


def corrected(text: str) -> tuple[str, list[str]]:
    """The text that the messages lead to, and the codes met on the way."""
    met: list[str] = []
    for _ in range(30):
        found = mistakes(text)
        if not found:
            return text, met
        after, made = apply_fixes(found[0].span.source, found)
        met += [one.code for one in made or found[:1]]
        text = after.text if made else followed(text, found[0])
    raise AssertionError(f"the messages lead nowhere: {met}\n{text}")


def canonical(text: str) -> str:
    return print_file(parse(Source("corrected.attn", text)))


@pytest.mark.parametrize("name", BROKEN)
def test_the_messages_of_a_broken_spec_lead_to_its_fixed_version(name: str) -> None:
    text, met = corrected((FOLDER / f"{name}.attn").read_text("utf-8"))
    assert met
    assert canonical(text) == canonical((FOLDER / "fixed" / f"{name}.attn").read_text("utf-8"))


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_newcomer_reads_is_kept_as_it_is(name: str, golden) -> None:
    path = FOLDER / f"{name}.attn"
    with pytest.raises(SpecError) as caught:
        check_text(path.read_text("utf-8"), path.name)
    assert all(one.help for one in caught.value.diagnostics)
    golden(f"{name}.txt", f"{caught.value}\n")


def test_there_are_ten_and_more_and_each_has_a_fixed_version() -> None:
    assert len(BROKEN) >= 10
    assert sorted(path.stem for path in (FOLDER / "fixed").glob("*.attn")) == BROKEN


def test_a_help_line_that_says_nothing_to_write_would_be_seen() -> None:
    (one,) = mistakes((FOLDER / "braces_inside_a_union.attn").read_text("utf-8"))
    with pytest.raises(AssertionError, match="a newcomer would not know what to write"):
        followed("", one)
