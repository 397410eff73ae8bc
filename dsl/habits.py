"""Habits from other languages and from prose, and how the same is said here."""

from __future__ import annotations

import re
from collections.abc import Callable

from attnc.dsl.diagnostic import Edit
from attnc.dsl.excerpt import quoted
from attnc.dsl.expected import OPERATORS, found
from attnc.dsl.place import Place
from attnc.dsl.problems import Problems
from attnc.dsl.source import Span

_GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(?![0-9])")


def _condition(place: Place, problems: Problems) -> bool:
    """`if length < 8: full`, `length < 8 and phase == train: full`."""
    if place.text(-1) == "if" or place.word.text == "if":
        word = place.words[place.at - (place.text(-1) == "if")]
        help_text = "write `when { length < 8192: full, else: window(1024) }`"
        problems.add("A010", "there is no `if`", word.span, help=help_text)
        return True
    if place.word.text not in ("and", "or", "not") or ":" not in place.accepts:
        return False
    help_text = "put the second condition into a `when` inside of the first, or into a case of its own"
    problems.add("A010", f"there is no `{place.word.text}`: a case has one condition", place.word.span, help=help_text)
    return True


def _several_selectors(place: Place, problems: Problems) -> bool:
    """`first(3), last(1): full`."""
    inside = bool(place.open) and place.open[-1].sort == "cases" and ":" in place.accepts
    if place.word.text != "," or not inside or not place.begins_case(place.at + 1):
        return False
    help_text = "several selectors of one case stand in brackets: `[first(3), last(1)]: full`"
    fix = _bracketed(place)
    problems.add("A010", f"unexpected `,` after {quoted(place.text(-1))}", place.word.span, help=help_text, fix=fix)
    return True


def _bracketed(place: Place) -> Edit | None:
    """The selectors around a comma, up to the colon, in brackets."""
    words, begin, end = place.words, place.at - 1, place.at + 1
    while not words[begin].first and words[begin - 1].text != "{" and words[begin - 1].text != ",":
        begin -= 1
    while words[end].text != ":":
        end += 1
    span = Span(place.word.span.source, words[begin].span.start, words[end - 1].span.end)
    return None if "{" in span.text or "\n" in span.text else Edit(span, f"[{span.text}]")


def _index(place: Place, problems: Problems) -> bool:
    """`window[8]`."""
    if place.word.text != "[" or place.kind(-1) != "NAME" or "(" not in place.accepts or place.word.first:
        return False
    end = next((word.span.end for word in place.words[place.at + 1 :] if word.text in ("[", "]", "{", "}")), -1)
    span = Span(place.word.span.source, place.word.span.start, end)
    call = f"({span.text[1:-1]})" if span.text.endswith("]") and len(span.text) > 2 else ""
    help_text = f"arguments stand in parentheses: `{place.text(-1)}{call or '(...)'}`"
    fix = Edit(span, call) if call else None
    problems.add("A010", f"unexpected `[` after {quoted(place.text(-1))}", place.word.span, help=help_text, fix=fix)
    return True


def _grouped_digits(place: Place, problems: Problems) -> bool:
    """`rope = 1,000,000`."""
    if place.kind(0) != "NUMBER" or place.text(-1) != "," or place.kind(-2) != "NUMBER":
        return False
    start = place.words[place.at - 2].span
    match = _GROUPED.match(start.source.text, start.start)
    if not match:
        return False
    meant = match.group().replace(",", "")
    span = Span(start.source, start.start, match.end())
    problems.add("A008", f"{quoted(match.group())} is not a number", span, help=f"write `{meant}`", fix=meant)
    return True


def _range(place: Place, problems: Problems) -> bool:
    """`0-3`, `3..`, `first(3)..7`."""
    word = place.word
    if word.type == "NUMBER" and word.text.startswith("-") and place.kind(-1) == "NUMBER":
        low = place.words[place.at - 1]
        span = Span(word.span.source, low.span.start, word.span.end)
        meant = f"{low.text}..{word.text[1:]}"
        help_text = f"a range is `{meant}`; there is no arithmetic"
        problems.add("A010", f"{quoted(low.text)} is followed by another number", span, help=help_text, fix=meant)
        return True
    if ".." not in (word.text, place.text(-1)):
        return False
    message = f"unexpected {found(place)}"
    problems.add("A010", message, word.span, expected="a number on both sides of `..`, such as `0..3`")
    return True


def _argument_without_parentheses(place: Place, problems: Problems) -> bool:
    """`window 1024`, `aligned 64`."""
    word, name = place.word, place.words[place.at - 1]
    if word.type != "NUMBER" or name.type != "NAME" or word.first:
        return False
    span = Span(word.span.source, name.span.start, word.span.end)
    call, setting = f"{name.text}({word.text})", f"{name.text} = {word.text}"
    if "(" not in place.accepts:
        help_text, fix = f"write `{setting}`", setting
    elif place.open and place.open[-1].sort == "(":
        help_text, fix = f"write `{setting}` for the argument of that name, or `{call}`", setting
    else:
        help_text, fix = f"write `{call}`", call
    problems.add("A010", f"unexpected {quoted(word.text)} after {quoted(name.text)}", span, help=help_text, fix=fix)
    return True


def _block(place: Place, problems: Problems) -> bool:
    """Blocks and operators where only a value can stand."""
    text = place.word.text
    setting = place.open and place.open[-1].sort in ("settings", "[")
    if setting and text in OPERATORS and "," in place.accepts:
        what = f"`{text}`"
    elif setting and text in ("when", "heads", "choose", "route") and "NUMBER" in place.accepts:
        what = f"the block `{text}`"
    else:
        return False
    help_text = "operators and blocks stand in `mix` and in the cases of `layers`"
    one = "one value: a number, a name, a call such as `rms(1e-6)`, or a list of them"
    problems.add("A010", f"{what} cannot stand in a setting", place.word.span, expected=one, help=help_text)
    return True


HABITS: tuple[Callable[[Place, Problems], bool], ...] = (
    _condition,
    _several_selectors,
    _index,
    _grouped_digits,
    _range,
    _argument_without_parentheses,
    _block,
)
