"""Random syntax trees: everything that the grammar can say, within the rules of a whole file.

Drawn by hand from few choices: strategies nested in strategies take hypothesis minutes to describe.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from attnc.dsl import Source, Span, tree

Draw = Callable[[st.SearchStrategy], object]

SOURCE = Source("drawn", "")
AT = Span(SOURCE, 0, 0)
WORDS = st.sampled_from(["full", "sink", "a", "b", "rope", "x_1", "when_", "elsewhere", "e", "all", "modela", "z9", "n" * 64])
KEYS = WORDS | st.sampled_from(["layers", "heads"])
WHOLE = st.integers(-(10**12), 10**12)
REAL = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: len(repr(value)) <= 24)
DEPTH = 3


def name(draw: Draw) -> tree.Name:
    return tree.Name(draw(WORDS), AT)


def number(draw: Draw) -> tree.Number:
    return tree.Number(draw(WHOLE | REAL), draw(st.booleans()), AT)


def some(draw: Draw, one: Callable[[Draw], object], least: int = 1, most: int = 4) -> tuple:
    return tuple(one(draw) for _ in range(draw(st.integers(least, most))))


def ordered_range(draw: Draw) -> tree.Range:
    low, high = sorted((number(draw), number(draw)), key=lambda end: end.value)
    return tree.Range(low, high, AT)


def value(draw: Draw, depth: int = 1) -> tree.Value:
    match draw(st.integers(0, 4 if depth else 2)):
        case 0:
            return name(draw)
        case 1:
            return number(draw)
        case 2:
            return ordered_range(draw)
        case 3:
            return tree.List(some(draw, lambda d: value(d, depth - 1)), AT)
    return tree.Call(name(draw), arguments(draw, lambda d: value(d, depth - 1)), AT)


def arguments(draw: Draw, one: Callable[[Draw], tree.Expression]) -> tuple[tree.Argument, ...]:
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    placed = [tree.Argument(None, one(draw), AT) for _ in range(draw(st.integers(0 if keys else 1, 2)))]
    return (*placed, *(tree.Argument(tree.Name(key, AT), one(draw), AT) for key in keys))


def settings(draw: Draw) -> tuple[tree.Setting, ...]:
    keys = draw(st.lists(KEYS, min_size=1, max_size=8, unique=True))
    return tuple(tree.Setting(tree.Name(key, AT), value(draw, 2), AT) for key in keys)


def selector(draw: Draw) -> tree.Selector:
    if draw(st.booleans()):
        return value(draw)
    operator = draw(st.sampled_from(["<", "<=", ">", ">=", "=="]))
    return tree.Compare(value(draw), operator, value(draw), AT)


def cases(draw: Draw, depth: int) -> tuple[tree.Case, ...]:
    ruled = some(draw, lambda d: tree.Case(selector(d), expression(d, depth), AT), most=3)
    return (*ruled, tree.Case(tree.Else(AT), expression(draw, depth), AT)) if draw(st.booleans()) else ruled


def expression(draw: Draw, depth: int = DEPTH) -> tree.Expression:
    below = depth - 1
    match draw(st.integers(0, 7)) if depth else 0:
        case 1:
            return tree.Call(name(draw), arguments(draw, lambda d: expression(d, below)), AT)
        case 2 | 3 | 4 as kind:
            operator = (tree.Union, tree.Add, tree.Chain)[kind - 2]
            return operator(some(draw, lambda d: expression(d, below), least=2, most=3), AT)
        case 5:
            return tree.With(expression(draw, below), settings(draw), AT)
        case 6:
            word = tree.Name(draw(st.sampled_from(["when", "heads"])), AT)
            return tree.Block(word, (), cases(draw, below), AT)
        case 7:
            word = tree.Name(draw(st.sampled_from(["choose", "route"])), AT)
            return tree.Block(word, arguments(draw, lambda d: expression(d, 0)), cases(draw, below), AT)
    return value(draw)


@st.composite
def expressions(draw: Draw) -> tree.Expression:
    return expression(draw)


@st.composite
def files(draw: Draw) -> tree.File:
    mixes = [tree.Mix(tree.Name(text, AT), expression(draw, 2), AT) for text in draw(st.lists(WORDS, max_size=3, unique=True))]
    items = [tree.Model(name(draw), settings(draw), AT), *mixes, tree.Layers(cases(draw, 2), AT)]
    if draw(st.booleans()):
        items.append(tree.Recipe(settings(draw), AT))
    if draw(st.booleans()):
        items.append(tree.Driver(name(draw), settings(draw), AT))
    return tree.File(tuple(draw(st.permutations(items))), SOURCE)
