"""The codes that reading a file may give: A0 for syntax, A5 for files."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """`title` is one line; `page` says what the rule is for and what to write instead."""

    title: str
    page: str


CODES: dict[str, Code] = {
    "A001": Code("the file says nothing", "A spec has a `model` and a `layers`; comments and blank lines alone are no spec."),
    "A002": Code(
        "the text is larger than 1 MiB", "The longest spec known has some hundred lines. Data and weights live in other files."
    ),
    "A003": Code(
        "brackets are nested deeper than 32", "Give inner parts a name with `mix NAME = ...` and use the name where they stood."
    ),
    "A004": Code("a name has more than 64 characters", "Names become names of weights and of folders, which have bounds."),
    "A005": Code(
        "a number is too long, too large or too small",
        "A number has at most 24 characters, and is neither infinite nor so small that it rounds to 0.",
    ),
    "A006": Code(
        "a character that the language does not use",
        "The signs of the language are `{ } ( ) [ ] , : = | + >> .. % #` and `< <= > >= ==`. There are no strings and no "
        "arithmetic. Word processors turn quotes, dashes and spaces into others that only look alike: write the plain ones.",
    ),
    "A007": Code(
        "the file is not text", "The text holds a NUL character: it is a checkpoint, or saved as UTF-16. A spec is UTF-8."
    ),
    "A008": Code(
        "not a number",
        "A number is `7`, `-0.85`, `1e-6`, or a share, `25%`. Digits are not grouped, a dot has digits on both sides, and "
        "there are no units such as `8k`.",
    ),
    "A009": Code("not a name", "A name has small letters, digits and `_`, and begins with a letter."),
    "A010": Code(
        "a word or sign that cannot stand here",
        "The line `expected` says what could stand there. Braces hold either settings, `key = value`, or cases, "
        "`selector: expression`; parentheses hold arguments; operators stand between mixers.",
    ),
    "A011": Code(
        "a bracket is never closed",
        "The caret is under the bracket that is still open where something begins that cannot stand inside of it.",
    ),
    "A012": Code("a closing bracket without an opening one", "Often the bracket before it was closed too early, or twice."),
    "A013": Code(
        "parentheses, brackets or braces with nothing inside",
        "What takes no argument is written as its name alone: `full`. Braces without settings are left out.",
    ),
    "A014": Code("something is missing before the line's end", "A value, an expression or a name is missing there."),
    "A015": Code(
        "a reserved word used as a name",
        "`model mix layers recipe driver heads when choose route else` begin items and blocks, so no mix is called so.",
    ),
    "A016": Code(
        "two entries without a comma",
        "Entries of a brace are separated by a comma or by a line end; arguments and the values of a list always by a comma.",
    ),
    "A017": Code("not an item of a spec", "A spec is a list of `model`, `mix`, `layers`, `recipe` and `driver`, nothing else."),
    "A018": Code(
        "`:` or `=` missing, exchanged or too many",
        "Settings and named things are written with `=`, cases with `:`, and conditions compare with `==`.",
    ),
    "A019": Code(
        "a spec has more than 50000 words", "Name what comes again with `mix`, and select layers with ranges and `every`."
    ),
    "A020": Code(
        "no `model`", "`model NAME { ... }` says what is around the mixers: sizes, norm, vocabulary, number of layers."
    ),
    "A021": Code("a second `model`", "A spec describes one model."),
    "A022": Code("no `layers`", "`layers { ... }` says who works in which layer; `layers { all: full }` is the shortest."),
    "A023": Code("a second `layers`", "All rules for layers stand in one pair of braces."),
    "A024": Code("a second `recipe`", "All settings for training stand in one pair of braces."),
    "A025": Code("a second `driver`", "A model is read by one driver at most."),
    "A026": Code("two mixes of one name", "The second one would hide the first, so each has a name of its own."),
    "A027": Code("a key given twice in one brace", "The second value would hide the first."),
    "A028": Code("an argument given twice in one call", "The second value would hide the first."),
    "A029": Code("`else` is not the last case", "`else` takes what no other case takes, so it stands behind all of them."),
    "A030": Code("a second `else`", "`else` takes all that is left, so a second one has nothing to take."),
    "A031": Code("a range that ends before it begins", "A range goes up and holds both ends: `3..7` is 3, 4, 5, 6, 7."),
    "A099": Code("too many errors", "After 50 errors reading stops: more would bury the first ones, from which many follow."),
    "A501": Code("no such file", "No file lies at this path; the closest name in the folder is shown."),
    "A502": Code("a folder where a file is needed", "A spec is one file; `attnc check FOLDER/*.attn` checks all of a folder."),
    "A503": Code(
        "the file is not text", "The bytes are not UTF-8. It may be a checkpoint, or a text saved in another encoding."
    ),
    "A504": Code("the file is larger than 1 MiB", "The longest spec known has some hundred lines; is it the right file?"),
    "A505": Code("the file cannot be read", "The system refuses, for the reason that it names: mostly missing rights."),
}
