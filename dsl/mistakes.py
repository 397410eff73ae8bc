"""What is wrong where the parser stopped, in the words of the language, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable

from attnc.dsl.diagnostic import Edit, closest
from attnc.dsl.excerpt import quoted
from attnc.dsl.expected import CLOSES, EXPRESSION, INSIDE, INSIDE_PLURAL, OPERATORS, expected, found, shown
from attnc.dsl.habits import HABITS
from attnc.dsl.place import ITEMS, Bracket, Place
from attnc.dsl.problems import Problems
from attnc.dsl.source import Span

BLOCKS = {
    "when": "when { length < 8192: full, else: window(1024) }",
    "heads": "heads { 0: full, else: window(1024) }",
    "choose": "choose(per = layer) { dense: full, sparse: window(1024) }",
    "route": "route(per = token, by = router(linear)) { dense: full, sparse: window(1024) }",
}
"""How blocks begin."""

OF_WORDS = ("A004", "A005", "A006", "A008", "A009", "A013", "A015", "A018")
"""Codes of mistakes within one word."""


def report(place: Place, problems: Problems) -> None:
    """Report the one mistake at `place`: the first of the known ones that fits, or what was found and what was expected.

    What was reported when the text was cut into words is not reported again by the words around it.
    """
    if _known(place, problems):
        return
    for known in KNOWN:
        if known(place, problems):
            return
    _unexpected(place, problems)


def lacks_comma(place: Place, problems: Problems) -> bool:
    """Report an entry on the line of the one before; False if it is no entry at all, which is reported too."""
    begins = place.begins_case if place.open[-1].sort == "cases" else place.begins_setting
    if not begins(place.at) or place.text(-1) == "if":
        report(place, problems)
        return False
    if _known(place, problems):
        return False
    before = place.words[place.at - 1].span
    gap = Edit(Span(before.source, before.end, before.end), ",")
    message = f"there is no comma before {quoted(place.word.text)}"
    help_text = "entries on one line are separated by commas; write `,` or begin a new line"
    problems.add("A016", message, place.word.span, help=help_text, fix=gap)
    return True


def _known(place: Place, problems: Problems) -> bool:
    """Whether a mistake was found in the word that does not fit, or in the gap before it."""
    begin = place.words[place.at - 1].span.end if place.at else 0
    start, end = place.word.span.start, place.word.span.end
    spans = [known.span for known in problems.found if known.code in OF_WORDS]
    return any(begin <= span.start < end or span.start <= start < span.end for span in spans)


def _unclosed(place: Place, problems: Problems) -> bool:
    """A bracket is open where something stands that cannot stand inside of it."""
    if not place.open:
        return False
    innermost, word, at_end = place.open[-1], place.word, place.kind(0) == "$END"
    text = word.text
    if at_end:
        where = ""
    elif text != CLOSES[innermost.sort] and any(text == CLOSES[bracket.sort] for bracket in place.open):
        where = "this closes another bracket"
    elif place.begins_item(place.at) or (text == "{" and place.begins_item(place.at - 1)):
        word = place.words[place.at - (text == "{")]
        where = "a new item begins here"
    elif place.inside_cases and place.word.first and place.begins_case(place.at):
        where = "a new case begins here"
    elif text == ":" and place.inside_cases and ")" in place.accepts:
        where = "this ends a selector"
    else:
        return False
    opened = place.words[innermost.index]
    notes = () if at_end else ((where, word.span),)
    odd = place.odd_pair()
    if odd and where != "this closes another bracket":
        notes = (*notes, ("this bracket closes one that is indented otherwise", odd))
    message = f"`{opened.text}` is not closed" + ("" if at_end else f" before {quoted(word.text)}")
    before = place.words[innermost.index - 1]
    grouping = innermost.sort == "(" and before.type != "NAME" and before.text not in ("choose", "route")
    ends = "the expression ends" if grouping else f"{INSIDE_PLURAL[innermost.sort]} end"
    help_text = f"write `{CLOSES[innermost.sort]}` where {ends}"
    fix = None if odd else _closing(place, innermost, place.at - (word is not place.word))
    problems.add("A011", message, opened.span, notes=notes, help=help_text, fix=fix)
    return True


def _closing(place: Place, innermost: Bracket, at: int) -> Edit:
    """The bracket that is missing: behind the last word before that at `at`, or on a line of its own if it holds lines."""
    opened, last = place.words[innermost.index], place.words[at - 1]
    source, sign = opened.span.source, CLOSES[innermost.sort]
    lines = "\n" in source.text[opened.span.end : last.span.end]
    if sign != "}" or not lines:
        end = Span(source, last.span.end, last.span.end)
        return Edit(end, f" {sign}" if sign == "}" else sign)
    begin = source.text.rfind("\n", 0, opened.span.start) + 1
    line = source.text[begin : opened.span.start]
    end_of_line = source.text.find("\n", last.span.end)
    at = len(source.text) if end_of_line < 0 else end_of_line
    return Edit(Span(source, at, at), f"\n{line[: len(line) - len(line.lstrip())]}{sign}")


def _closes_nothing(place: Place, problems: Problems) -> bool:
    text = place.word.text
    if text not in (")", "]", "}") or any(text == CLOSES[bracket.sort] for bracket in place.open):
        return False
    opening = {")": "(", "]": "[", "}": "{"}[text]
    problems.add("A012", f"`{text}` closes nothing: no `{opening}` is open here", place.word.span, help="delete it", fix="")
    return True


def _nothing_behind(place: Place, problems: Problems) -> bool:
    """`heads =` at the end of a line, the next setting below; `full +` at the end of a brace; `mix a` alone on its line."""
    start = place.cut_entry
    if start is not None:
        what = "a value" if place.text(start - 1 - place.at) == "=" else EXPRESSION
    elif (place.at and place.word.first and _incomplete(place)) or (
        place.text(-1) in ("=", ":", *OPERATORS) and place.text(0) in (",", "}", ")", "]")
    ):
        start, what = place.at, expected(place.accepts)
    else:
        return False
    before = place.words[start - 1]
    after = Span(before.span.source, before.span.end, before.span.end)
    what_for = "nothing stands" if before.text in ("=", ":", *OPERATORS) else "something is missing"
    problems.add("A014", f"{what_for} behind {quoted(before.text)}", after, expected=what)
    return True


def _incomplete(place: Place) -> bool:
    """Whether an entry or item was not complete at the end of the line before, and not for a word of this line."""
    complete = "}" in place.accepts or "mix" in place.accepts
    return not complete and place.text(-1) not in (",", "(", "[", "{")


def _empty(place: Place, problems: Problems) -> bool:
    before, text = place.text(-1), place.word.text
    if before + text not in ("()", "[]", "{}"):
        return False
    span = Span(place.word.span.source, place.words[place.at - 1].span.start, place.word.span.end)
    at_item = place.text(-2) in ITEMS or place.text(-3) in ITEMS
    if before == "{" and place.open[-1].sort == "settings" and not at_item:
        help_text = "delete them, or write a setting, `key = value`"
        problems.add("A013", "the braces are empty", span, help=help_text, fix="")
        return True
    what = {"(": "parentheses", "[": "brackets", "{": "braces"}[before]
    inside = EXPRESSION if before == "(" else INSIDE[place.open[-1].sort]
    problems.add("A013", f"the {what} are empty", span, expected=inside)
    return True


def _not_an_item(place: Place, problems: Problems) -> bool:
    word = place.word
    if place.open or "mix" not in place.accepts or word.type == "$END" or not (word.first or place.text(-1) == "}"):
        return False
    near = closest(word.text, ITEMS) if word.type == "NAME" else ""
    fix = None
    if place.text(1) == "=":
        near = f"a named expression begins with `mix`: `mix {word.text} = ...`"
        fix = Edit(Span(word.span.source, word.span.start, word.span.start), "mix ") if word.type == "NAME" else None
    elif place.text(1) == ":" or word.text == "else":
        near = "rules for layers stand in `layers { }`; is a `}` too many before?"
    message = f"{quoted(word.text)} does not begin an item of a spec"
    problems.add("A017", message, word.span, expected="`model`, `mix`, `layers`, `recipe` or `driver`", help=near, fix=fix)
    return True


def _behind_braces(place: Place, problems: Problems) -> bool:
    """`A { } | B` and `A { } { }`."""
    if place.text(-1) != "}" or place.text(0) not in ("|", "{") or "+" not in place.accepts:
        return False
    fix = None
    if place.text(0) == "{":
        message, help_text = "a second pair of braces behind one mixer", "write all attributes in one pair"
    else:
        message = "`|` cannot follow attributes, which belong to a whole union"
        help_text = "write the braces behind the last key set; to add outputs of separate softmaxes, write `+`"
        fix = _braces_last(place)
    problems.add("A010", message, place.word.span, help=help_text, fix=fix)
    return True


def _braces_last(place: Place) -> Edit | None:
    """The braces before a `|` moved behind the key sets that follow; None where more braces or a comment stand among them."""
    after = 0
    while place.text(after) == "|" and place.kind(after + 1) == "NAME":
        after = _past_arguments(place, after + 2)
    if not after or place.text(after) in ("|", "{", ""):
        return None
    opened = next(first for first, last in reversed(place.closed) if last == place.at - 1)
    source, start = place.word.span.source, place.words[opened].span.start
    span = Span(source, start, place.words[place.at + after - 1].span.end)
    braces = source.text[start : place.words[place.at - 1].span.end]
    union = source.text[place.word.span.start : span.end]
    return None if "#" in span.text else Edit(span, f"{union} {braces}")


def _past_arguments(place: Place, offset: int) -> int:
    """The offset behind the arguments that begin at `offset`, if there are some."""
    depth = 0
    while place.text(offset) == "(" or (depth and place.text(offset)):
        depth += (place.text(offset) == "(") - (place.text(offset) == ")")
        offset += 1
        if not depth:
            break
    return offset


KNOWN: tuple[Callable[[Place, Problems], bool], ...] = (
    _unclosed,
    _closes_nothing,
    _nothing_behind,
    _empty,
    _not_an_item,
    _behind_braces,
    *HABITS,
)


def _unexpected(place: Place, problems: Problems) -> None:
    after = f" after {quoted(shown(place.words[place.at - 1]))}" if place.at else ""
    what = "what it depends on, such as `(per = layer)`" if place.text(-1) in ("choose", "route") else expected(place.accepts)
    starts = place.word.type in ("NAME", "NUMBER") and not place.word.first
    help_text = "`|` joins key sets, `+` adds outputs, `>>` chains them" if starts and "|" in place.accepts else ""
    if place.text(-1) in BLOCKS and place.accepts <= {"{", "("}:
        help_text = f"write `{BLOCKS[place.text(-1)]}`"
    problems.add("A010", f"unexpected {found(place)}{after}", place.word.span, expected=what, help=help_text)
