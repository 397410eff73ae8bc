"""Characters and spellings that the language does not have, and what their writer meant.

Each function reports one mistake, and returns where reading goes on and what to read in its place ("" for nothing).
"""

from __future__ import annotations

import re
import unicodedata

from attnc.dsl.excerpt import quoted
from attnc.dsl.problems import Problems
from attnc.dsl.source import Source, Span

LOOK_ALIKES = {
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u2026": "..", "\u2025": "..", "\u3002": ".", "\u3001": ",",
    "\u2264": "<=", "\u2265": ">=", "\u2a7d": "<=", "\u2a7e": ">=", "\u2261": "==",
    "\u2192": ">>", "\u226b": ">>", "\u00bb": ">>", "\u2223": "|", "\u00a6": "|", "\u222a": "|", "\u2228": "|",
    ";": ",", "\u27e8": "(", "\u27e9": ")", "\u3010": "[", "\u3011": "]", "\u2236": ":", "\ua789": ":",
}  # fmt: skip
"""Signs of other alphabets, word processors and languages, with what they are mistaken for."""

LOOK_ALIKE_LETTERS = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u04cf\u03bf\u03bd\u03b1\u0131", "aeopcyxisjlovai"
)
"""Cyrillic and Greek letters that look like Latin ones."""

HELP = {
    '"': "there are no strings; write the bare name",
    "'": "there are no strings; write the bare name",
    "`": "there are no strings; write the bare name",
    "/": "a comment begins with `#`; there is no arithmetic",
    "*": "there is no arithmetic; write the number",
    "^": "there is no arithmetic; write the number",
    "-": "there is no arithmetic; a range is `0..3`, and a minus sign touches its number, `-1`",
    ".": "a range is written `0..3`",
    "&": "key sets are joined with `|`, outputs are added with `+`",
    "%": "a share is a number with `%` right behind it, `25%`",
    "\\": "an expression goes on in the next line by itself",
    "@": "a setting is `key = value`",
    "?": "`when { condition: full, else: ... }` decides between expressions",
    "\ufeff": "delete this mark; the file is read as UTF-8 without it",
}

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WIDE_NAME = re.compile(r"\w+(?:-[A-Za-z]\w*)*")
_WIDE_NUMBER = re.compile(r"-?(?:[\w%]|\.(?!\.)|(?<=[0-9]e)[+-])+")
_UNIT = re.compile(r"(?<=[0-9])_?(?:tokens?|toks?|keys?|layers?|heads?)$")
"""What a number counts, behind it."""
_STRING = re.compile(r"([\"'`\u201c\u2018])([^\"'`\u201c\u201d\u2018\u2019\n]*)[\"'`\u201d\u2019]")


def misspelt_name(source: Source, at: int, problems: Problems) -> tuple[int, str]:
    """`Full`, `full-attention`, `_x`, letters of other alphabets: A009, read as the nearest name."""
    match = _WIDE_NAME.match(source.text, at)
    assert match, "called at a letter or `_`"
    text, span = match.group(), Span(source, at, match.end())
    ascii_text = unicodedata.normalize("NFKD", text).translate(LOOK_ALIKE_LETTERS)
    meant = "".join(re.findall(r"[a-z0-9_]", ascii_text.lower().replace("-", "_"))).strip("_").lstrip("0123456789_")
    foreign = next((sign for sign in text if not sign.isascii()), "")
    if foreign:
        message = f"{quoted(text)} holds {quoted(foreign)} ({_unicode_name(foreign)}); a name has only the letters a to z"
    elif "-" in text:
        message = f"{quoted(text)} is not a name: a hyphen cannot stand in it"
    elif text.startswith("_"):
        message = f"{quoted(text)} is not a name: it has to begin with a letter"
    else:
        message = f"{quoted(text)} is not a name: capital letters cannot stand in it"
    expected = "a name: small letters, digits and `_`, a letter first"
    if not _NAME.fullmatch(meant):
        problems.add("A009", message, span, expected=expected)
        return match.end(), "x"
    problems.add("A009", message, span, expected=expected, help=f"write {quoted(meant, 64)}", fix=meant)
    return match.end(), meant


def misspelt_number(source: Source, at: int, problems: Problems) -> tuple[int, str]:
    """`.5`, `5.`, `8k`, `1_000`, `0x10`: A008, read as 1."""
    match = _WIDE_NUMBER.match(source.text, at)
    assert match, "called at a digit or a dot"
    text, span = match.group(), Span(source, at, match.end())
    meant = _number_meant(_UNIT.sub("", text))
    help_text = f"write `{meant}`" if meant else ""
    if re.fullmatch(r"[0-9]{1,6}[kK]", text):
        help_text = f"write the number out: `{int(text[:-1]) * 1000}` or `{int(text[:-1]) * 1024}`"
    expected = "a number such as `7`, `-0.85`, `1e-6` or `25%`"
    problems.add("A008", f"{quoted(text)} is not a number", span, expected=expected, help=help_text, fix=meant or None)
    return match.end(), "1"


def _number_meant(text: str) -> str:
    meant = text.lower().replace("_", "")
    meant = re.sub(r"^(-?)\.", r"\g<1>0.", meant)
    meant = re.sub(r"\.(?=$|%|e)", "", meant)
    usual = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?%?", meant)
    return meant if usual and len(meant) < 12 else ""


def stray(source: Source, at: int, problems: Problems) -> tuple[int, str]:
    """A sign that is no part of the language: A006. Look-alikes are read as what they look like."""
    string = _STRING.match(source.text, at)
    if string:
        return _string(source, string, problems)
    if source.text.startswith("//", at):
        slashes = Span(source, at, at + 2)
        problems.add("A006", "unexpected characters `//`", slashes, help="a comment begins with `#`", fix="#")
        return line_end(source.text, at), ""
    if source.text.startswith("!=", at):
        both = Span(source, at, at + 2)
        help_text = "write the case `==` first and this one under `else`"
        problems.add("A006", "there is no `!=`", both, expected="`<`, `<=`, `>`, `>=` or `==`", help=help_text)
        return at + 2, "=="
    if source.text.startswith("->", at):
        arrow = Span(source, at, at + 2)
        help_text = "a case is `selector: expression`; a chain of mixers is `A >> B`"
        problems.add("A006", "there is no `->`", arrow, help=help_text)
        return at + 2, ""
    sign = source.text[at]
    end = at + 1
    while end < len(source.text) and source.text[end] == sign:
        end += 1
    span = Span(source, at, end)
    meant = LOOK_ALIKES.get(sign, "") or unicodedata.normalize("NFKC", sign)
    if meant == "-" and source.text[at - 1 : at].isdigit():
        meant = ".."
    name = "" if " " < sign < "\x7f" else f" ({_unicode_name(sign)})"
    message = f"unexpected character {quoted(sign)}{name}"
    if not meant.isascii() or meant == sign:
        problems.add("A006", message, span, help=HELP.get(sign, "delete it"))
        return end, ""
    wanted = "a plain space" if meant.isspace() else f"`{meant}`"
    problems.add("A006", message, span, help=f"write {wanted}", fix=meant * (end - at))
    return end, meant.strip()


def line_end(text: str, at: int) -> int:
    """The index of the line end at or after `at`."""
    end = text.find("\n", at)
    return end if end >= 0 else len(text)


def _string(source: Source, string: re.Match[str], problems: Problems) -> tuple[int, str]:
    inside = string.group(2)
    span = Span(source, string.start(), string.end())
    if _NAME.fullmatch(inside):
        problems.add("A006", "there are no strings", span, help=f"write the bare name, {quoted(inside, 64)}", fix=inside)
        return string.end(), inside
    problems.add("A006", "there are no strings", span, help="values are names, numbers and lists of them")
    return string.end(), "x"


def _unicode_name(sign: str) -> str:
    return unicodedata.name(sign, f"U+{ord(sign):04X}")
