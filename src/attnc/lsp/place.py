"""What is being written at a place of a text that need not be whole: which keys, words or expressions may stand there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from attnc.compiler.attributes import Attributes
from attnc.compiler.fields import Field, fields, is_value, items, tag
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import ModelSettings
from attnc.compiler.read_operator import OPERATORS
from attnc.compiler.read_recipe import DRIVERS
from attnc.compiler.recipe import Recipe
from attnc.compiler.selectors import SELECTORS
from attnc.compiler.tuning import (
    BudgetArguments,
    ChooseArguments,
    ContextArguments,
    GateArguments,
    RouteArguments,
    SelectArguments,
)
from attnc.compiler.value import Value
from attnc.dsl.layout import begins_entry, ends_operand
from attnc.dsl.words import Word

SIGNS = ("|", "+", ">>")
Owner = type[Value]
Sort = Literal["file", "settings", "layers", "when", "heads", "alternatives", "arguments", "group", "list"]

BLOCKS: dict[str, Sort] = {"layers": "layers", "when": "when", "heads": "heads"}
ARGUMENTS: dict[str, Owner] = {
    "gate": GateArguments,
    "context": ContextArguments,
    "select": SelectArguments,
    "budget": BudgetArguments,
    "choose": ChooseArguments,
    "route": RouteArguments,
}
MODEL: tuple[Owner, ...] = (ModelSettings, Attributes)


@dataclass
class Frame:
    """An open bracket, or the file around all of them, and how far its last entry has come.

    `owners` declare the keys that may stand in it; `key` is that of the entry if one was written, `separated` whether its
    `=` or `:` was; `taken` are the keys of the entries before.
    """

    sort: Sort
    owners: tuple[Owner, ...] = ()
    head: str = ""
    key: str = ""
    separated: bool = False
    taken: list[str] = field(default_factory=list)

    @property
    def declared(self) -> dict[str, Field]:
        """The keys that may stand here."""
        return {key: one for owner in self.owners for key, one in fields(owner).items()}

    def begin_entry(self) -> None:
        """The next entry begins."""
        self.key, self.separated = "", False


@dataclass(frozen=True)
class Place:
    """The innermost bracket, the ones around it, and the word before the one that is being written."""

    frames: tuple[Frame, ...]
    before: str

    @property
    def frame(self) -> Frame:
        """The innermost one."""
        return self.frames[-1]

    @property
    def wants_expression(self) -> bool:
        """Whether a kind or the name of a mix may stand here."""
        frame = self.frame
        if self.before not in (*SIGNS, "=", ":", "(", ","):
            return False
        return {
            "file": frame.head == "mix" and frame.separated,
            "settings": False,
            "arguments": not frame.owners or frame.head in OPERATORS,
            "group": True,
            "list": False,
        }.get(frame.sort, frame.separated)


def place(words: list[Word], offset: int) -> Place:
    """The place at a character; the word that ends there is being written."""
    before = [word for word in words if word.span.end <= offset and not (word.span.end == offset and word.type == "NAME")]
    frames = [Frame("file")]
    calls: list[str] = []
    for index, word in enumerate(before):
        last = before[index - 1].text if index else ""
        frame = frames[-1]
        if word.text in ("(", "[", "{"):
            frames.append(_opened(word.text, before[:index], frames, calls))
            continue
        if word.text in (")", "]", "}"):
            _close(word.text, frames, calls)
            continue
        if begins_entry(last, word.text, inside=len(frames) > 1) and word.text != ",":
            frame.begin_entry()
            frame.head = word.text if frame.sort == "file" else frame.head
        if word.text == "," and frame.sort != "file":
            frame.begin_entry()
        elif word.text == "=":
            frame.key, frame.separated = last, True
            frame.taken.append(last)
        elif word.text == ":":
            frame.separated = True
    if before and frames[-1].sort != "file" and _line_ends(words, before[-1], offset) and ends_operand(before[-1].text):
        frames[-1].begin_entry()
    return Place(tuple(frames), before[-1].text if before else "")


def _line_ends(words: list[Word], last: Word, offset: int) -> bool:
    """Whether what is being written stands in another line than the word before it."""
    written = next((word.span.start for word in words if word.span.start >= last.span.end and word.span.end == offset), offset)
    return "\n" in last.span.source.text[last.span.end : written]


def _close(bracket: str, frames: list[Frame], calls: list[str]) -> None:
    """Close the innermost bracket of this sort; one that closes nothing is passed over."""
    closing = [")" if frame.sort in ("arguments", "group") else "]" if frame.sort == "list" else "}" for frame in frames]
    closing[0] = ""
    if bracket in closing:
        index = len(closing) - 1 - closing[::-1].index(bracket)
        calls.append(frames[index].head)
        del frames[index:]


def _opened(bracket: str, before: list[Word], frames: list[Frame], calls: list[str]) -> Frame:
    around = frames[-1]
    last = before[-1].text if before else ""
    if bracket == "[":
        return Frame("list", around.owners, key=around.key)
    if bracket == "(":
        if not before or not (before[-1].type == "NAME" or last in ARGUMENTS):
            return Frame("group")
        return Frame("arguments", tuple(owner for owner in [_owner(last, around)] if owner), last)
    names = [word.text for word in before[-2:]]
    if last in BLOCKS:
        return Frame(BLOCKS[last])
    if last == ")" and calls and calls[-1] in ("choose", "route"):
        return Frame("alternatives")
    if names[:1] == ["model"]:
        return Frame("settings", MODEL)
    if names[:1] == ["driver"]:
        return Frame("settings", (DRIVERS[last],) if last in DRIVERS else ())
    return Frame("settings", (Recipe,) if last == "recipe" else (Attributes,))


def _owner(word: str, around: Frame) -> Owner | None:
    """The class whose parameters a call of `word` takes."""
    declared = around.declared
    wanted = [declared[around.key]] if around.key in declared else [*declared.values()]
    for member in _members(wanted):
        if tag(member) == word:
            return member
    if around.sort == "layers" and not around.separated:
        return next((selector for selector in SELECTORS if tag(selector) == word), None)
    if word in MIXERS:
        return MIXERS[word].parameters
    return ARGUMENTS.get(word)


def _members(wanted: list[Field]) -> Iterator[Owner]:
    for one in wanted:
        yield from (member for member in (*one.types, *items(one.types)) if is_value(member))
