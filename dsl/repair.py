"""Mistakes whose intention is so plain that reading goes on as if the right word stood there. Each is reported."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.dsl.diagnostic import Edit, closest
from attnc.dsl.excerpt import quoted
from attnc.dsl.grammar import RESERVED, Grammar
from attnc.dsl.place import ITEMS, Place
from attnc.dsl.problems import Problems
from attnc.dsl.source import Span
from attnc.dsl.words import Word


def drop_empty_calls(words: list[Word], problems: Problems) -> list[Word]:
    """`full()` is read as `full`."""
    kept: list[Word] = []
    at = 0
    while at < len(words):
        word = words[at]
        kept.append(word)
        at += 1
        if word.type == "NAME" and [following.text for following in words[at : at + 2]] == ["(", ")"]:
            source, end = word.span.source, words[at + 1].span.end
            brackets = Span(source, words[at].span.start, end)
            whole = Span(source, word.span.start, end)
            message, help_text = f"{quoted(word.text)} has empty parentheses", f"write {quoted(word.text)}"
            problems.add("A013", message, whole, help=help_text, fix=Edit(brackets, ""))
            at += 2
    return kept


@dataclass(frozen=True)
class Repair:
    """The word to read, if any, and whether it stands in place of the one that does not fit or before it."""

    word: Word | None
    instead: bool


def repaired(place: Place, grammar: Grammar, problems: Problems) -> Repair | None:
    """How to read on at the word that does not fit, or None where the intention is not plain."""
    if place.cut_entry is not None:
        return None
    word = _separator(place, grammar, problems) or _item(place, grammar, problems) or _reserved(place, problems)
    if word:
        return Repair(word, instead=True)
    headed = place.text(-1) in ("layers", "recipe", "model", "driver") or place.text(-2) in ("model", "driver")
    if headed and "{" in place.accepts and place.text(0) in ("=", ":") and place.text(1) == "{":
        message = f"`{place.word.text}` cannot stand between `{place.text(-1)}` and its braces"
        problems.add("A018", message, place.word.span, help="delete it", fix="")
        return Repair(None, instead=True)
    word = (
        _missing_name(place, problems)
        or _missing_separator(place, grammar, problems)
        or _missing_comma(place, grammar, problems)
    )
    return Repair(word, instead=False) if word else None


def _separator(place: Place, grammar: Grammar, problems: Problems) -> Word | None:
    """`rope: none` in settings, `else = full` in cases, `length = 8192: full`."""
    word = place.word
    if word.text not in ("=", ":", "=="):
        return None
    if word.text == "=" and "COMPARE" in place.accepts and place.text(2) == ":":
        problems.add("A018", "conditions compare with `==`", word.span, help="write `==`", fix="==")
        return Word("COMPARE", "==", word.span, word.first)
    named = "a name and its expression" if place.text(-2) == "mix" else "a key and its value"
    for sign, use in (("=", named), (":", "a selector and its expression")):
        if sign in place.accepts and sign != word.text:
            message = f"`{sign}` stands between {use}, not `{word.text}`"
            problems.add("A018", message, word.span, help=f"write `{sign}`", fix=_spaced(place, sign))
            return Word(grammar.signs[sign], sign, word.span, word.first)
    return None


def _spaced(place: Place, sign: str) -> Edit:
    """The sign in place of the word, spaced as usual: `all: full`, `rope = none`."""
    span, before = place.word.span, place.words[place.at - 1].span
    text = span.source.text
    blank = not text[before.end : span.start].strip(" ")
    after = "" if text[span.end : span.end + 1].isspace() else " "
    start = before.end if blank else span.start
    return Edit(Span(span.source, start, span.end), f"{' ' * (blank and sign == '=')}{sign}{after}")


def _missing_name(place: Place, problems: Problems) -> Word | None:
    """`model { ... }`, `model = { ... }`, `mix = full`."""
    before, text = place.text(-1), place.word.text
    begins = text == "{" or (text in ("=", ":") and place.text(1) == "{")
    if not (before in ("model", "driver") and begins) and (before, text) != ("mix", "="):
        return None
    begin = place.words[place.at - 1].span
    example = {"model": "model small { ... }", "driver": "driver retrieve { ... }", "mix": "mix local = ..."}[before]
    gap = Span(begin.source, begin.end, begin.end)
    problems.add("A014", f"`{before}` has no name", gap, expected="a name", help=f"write `{example}`")
    return Word("NAME", "", begin, first=False)


def _missing_separator(place: Place, grammar: Grammar, problems: Problems) -> Word | None:
    """`mix a window(8)`, `{ rope none }`, `{ else full }`, `{ 0..3 full }`."""
    word = place.word
    starts = word.type in ("NAME", "NUMBER") or word.text in ("[", "(", "when", "heads", "choose", "route")
    if word.first or not starts or (word.text in "[(" and place.kind(-1) == "NAME"):
        return None
    if "=" in place.accepts and "," not in place.accepts:
        sign = "="
    elif ":" in place.accepts and not place.begins_case(place.at) and place.kind(-1) != "NAME":
        sign = ":"
    else:
        return None
    before = place.words[place.at - 1].span
    gap = Span(before.source, before.end, before.end)
    fix = Edit(gap, sign if sign == ":" else " =")
    message = f"there is no `{sign}` between {quoted(before.text)} and {quoted(word.text)}"
    problems.add("A018", message, word.span, help=f"write `{sign}` before {quoted(word.text)}", fix=fix)
    return Word(grammar.signs[sign], sign, gap, first=False)


def _missing_comma(place: Place, grammar: Grammar, problems: Problems) -> Word | None:
    """`window(8 aligned = 4)`, `[q k]`. `0 -3` is a range."""
    word = place.word
    if word.first or "," not in place.accepts or not place.open or place.open[-1].sort not in ("(", "[") or word.text[0] == "-":
        return None
    before = place.words[place.at - 1]
    alike = word.type == before.type and word.type in ("NAME", "NUMBER")
    if not (place.begins_setting(place.at) or (alike and (place.open[-1].sort == "[" or word.type == "NUMBER"))):
        return None
    gap = Span(word.span.source, before.span.end, before.span.end)
    what = "values of a list" if place.open[-1].sort == "[" else "arguments"
    message = f"there is no comma before {quoted(word.text)}"
    problems.add("A016", message, word.span, help=f"{what} are separated by commas: write `,`", fix=Edit(gap, ","))
    return Word(grammar.signs[","], ",", gap, first=False)


def _item(place: Place, grammar: Grammar, problems: Problems) -> Word | None:
    """`layer { ... }`, `Modell x { ... }`: a word near to an item's, followed by what follows that item's word."""
    word = place.word
    if place.open or "mix" not in place.accepts or word.type != "NAME":
        return None
    for item, follows in (
        ("layers", place.text(1)),
        ("recipe", place.text(1)),
        ("model", place.text(2)),
        ("driver", place.text(2)),
    ):
        if follows == "{" and closest(word.text, [item]):
            problems.add("A017", f"{quoted(word.text)} is not an item of a spec", word.span, help=f"write `{item}`", fix=item)
            return Word(grammar.words[item], item, word.span, word.first)
    return None


def _reserved(place: Place, problems: Problems) -> Word | None:
    """A reserved word where only a name can stand."""
    word = place.word
    if word.text not in RESERVED or "NAME" not in place.accepts:
        return None
    if place.begins_item(place.at) or place.text(1) in ("{", "(") or (word.text == "else" and place.text(1) == ":"):
        return None
    words = ", ".join(f"`{reserved}`" for reserved in RESERVED)
    message = f"`{word.text}` is a reserved word and cannot be a name here"
    help_text = f"choose another name; reserved are {words}"
    problems.add("A015", message, word.span, help=help_text)
    return Word("NAME", word.text, word.span, word.first)


assert set(ITEMS) < set(RESERVED)
