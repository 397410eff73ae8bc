"""What could stand at a place, in the words of the language."""

from __future__ import annotations

from attnc.dsl.excerpt import quoted
from attnc.dsl.place import ITEMS, Place
from attnc.dsl.words import Word

EXPRESSION = "an expression such as `full`"
OPERATORS = ("|", "+", ">>")
CLOSES = {"(": ")", "[": "]", "settings": "}", "cases": "}"}
INSIDE = {"(": "an argument", "[": "a value", "settings": "a setting, `key = value`", "cases": "a case, `selector: expression`"}
INSIDE_PLURAL = {"(": "the arguments", "[": "the values", "settings": "the settings", "cases": "the cases"}

STARTS = {"NAME", "NUMBER", "[", "else", "when", "heads", "choose", "route", "layers"}
"""What a value, an expression, a selector or a key can begin with, beside `(`."""


def expected(accepts: frozenset[str]) -> str:
    """The phrase for what a parser accepts, most telling first: ``an operator (`|`, `+`, `>>`), `,` or `}```."""
    rest = set(accepts)
    said: list[str] = []

    def take(words: set[str], phrase: str) -> None:
        if words <= rest:
            said.append(phrase)
            rest.difference_update(words, STARTS if "NAME" in words else ())

    closing = "}" in rest
    take({"layers", "NAME", "("}, "an argument, such as `64` or `aligned = 64`")
    if "else" in rest:
        take({"NAME"}, "the next case on a line of its own" if closing else "a selector such as `all` or `every(4)`")
    take({"NAME", "NUMBER", "("}, EXPRESSION)
    take({"NAME", "layers"}, "the next setting on a line of its own" if closing else "a key")
    take({"NAME", "NUMBER"}, "a value")
    take({"NAME"}, "a name")
    take({"NUMBER"}, "a number")
    take({"COMPARE"}, "a comparison such as `<`")
    take(set(OPERATORS), "an operator (`|`, `+`, `>>`)")
    take(set(ITEMS), "the next item (`model`, `mix`, `layers`, `recipe`, `driver`)")
    take({"$END"}, "the end of the file")
    said += [f"`{sign}`" for sign in sorted(rest - STARTS)]
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def found(place: Place) -> str:
    """What stands at a place instead."""
    if place.word.type == "$END":
        return "end of the file"
    text = quoted(shown(place.word))
    return f"{text} in the next line" if place.word.first and place.at else text


def shown(word: Word) -> str:
    """A word as it is written, which may have been read as another one."""
    return word.span.text or word.text
