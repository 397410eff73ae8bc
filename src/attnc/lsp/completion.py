"""What may be written at a place, from the language's own declarations."""

from __future__ import annotations

from collections.abc import Iterator

from lsprotocol import types

from attnc.compiler.conditions import SUBJECTS
from attnc.compiler.fields import Field, expectation, items, options, tag, takes_keys
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.read_operator import OPERATORS
from attnc.compiler.read_recipe import DRIVERS
from attnc.compiler.selectors import SELECTORS
from attnc.compiler.spec import PHASES
from attnc.dsl.grammar import ITEMS
from attnc.dsl.source import Source
from attnc.lsp.document import mix_names, words
from attnc.lsp.place import ARGUMENTS, Frame, Place, place

Kind = types.CompletionItemKind
Item = types.CompletionItem
BLOCKS = ("when", "heads", "choose", "route")


def completions(source: Source, offset: int) -> list[Item]:
    """The words that may stand where `offset` is."""
    return list(_completions(source, place(words(source), offset)))


def _completions(source: Source, at: Place) -> Iterator[Item]:
    frame = at.frame
    if at.wants_expression:
        yield from _expressions(source)
    if frame.sort == "file" and at.before == "driver":
        yield from (_word(name, Kind.Class, owner.__doc__) for name, owner in DRIVERS.items())
    elif frame.sort == "file" and not at.wants_expression and at.before not in (*ITEMS, "=", "|", "+", ">>"):
        yield from (_word(item, Kind.Keyword) for item in ITEMS)
    elif frame.sort in ("settings", "arguments"):
        yield from _entries(source, frame)
    elif frame.sort == "list" and frame.key in frame.declared:
        yield from (_word(word, Kind.EnumMember) for word in options(items(frame.declared[frame.key].types)))
    elif not frame.separated:
        yield from _selectors(frame, at.before)


def _expressions(source: Source) -> Iterator[Item]:
    for name, mixer in MIXERS.items():
        yield _word(name, Kind.Class, mixer.parameters.__doc__)
    for name in mix_names(source):
        yield _word(name, Kind.Variable, f"the mix `{name}`")
    for name in OPERATORS:
        yield _word(name, Kind.Function, ARGUMENTS[name].__doc__)
    yield from (_word(word, Kind.Keyword) for word in BLOCKS)


def _entries(source: Source, frame: Frame) -> Iterator[Item]:
    """Keys; behind `=` the values of the key; in calls what may stand by place too."""
    declared = frame.declared
    if frame.separated:
        wanted = [declared[frame.key]] if frame.key in declared else []
    else:
        for key, one in declared.items():
            if key not in frame.taken:
                yield _key(key, one)
        wanted = [one for one in declared.values() if one.positional] if frame.sort == "arguments" else []
    for one in wanted:
        yield from (_word(word, Kind.EnumMember) for word in dict.fromkeys(options(one.types)))
        if one.budgeted:
            yield _word("budget", Kind.Function, ARGUMENTS["budget"].__doc__)
        if takes_keys(one.types):
            yield from _expressions(source)


def _key(key: str, one: Field) -> Item:
    default = (
        "required" if one.required else "default from the others" if one.derived else f"default {print_value(one.default)}"
    )
    return Item(label=key, kind=Kind.Property, detail=default, documentation=expectation(one), insert_text=f"{key} = ")


def _selectors(frame: Frame, before: str) -> Iterator[Item]:
    if frame.sort == "layers":
        yield from (_word(tag(selector), Kind.Function, selector.__doc__) for selector in SELECTORS)
        yield _word("all", Kind.Keyword)
    elif frame.sort == "when" and before == "==":
        yield from (_word(phase, Kind.EnumMember) for phase in PHASES)
    elif frame.sort == "when":
        yield from (_word(subject, Kind.Variable) for subject in SUBJECTS)
    if frame.sort in ("layers", "when", "heads"):
        yield _word("else", Kind.Keyword)


def _word(word: str, kind: types.CompletionItemKind, text: str | None = None) -> Item:
    return Item(label=word, kind=kind, documentation=types.MarkupContent(types.MarkupKind.Markdown, text) if text else None)
