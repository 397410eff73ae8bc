"""Typed expressions: names resolved, arguments read, key sets told from mixers. No attribute is applied yet.

A mix is read once, where it is defined; inheritance happens later, wherever it is used (compiler/lower.py).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

from attnc.compiler.fields import fields, takes_keys
from attnc.compiler.mixer import Kind
from attnc.compiler.model_settings import Given
from attnc.compiler.tuning import ChooseArguments, ContextArguments, GateArguments, RouteArguments, SelectArguments
from attnc.dsl import tree

Type = Literal["keys", "mixer", "change", "wrong"]


@dataclass(frozen=True)
class Keys:
    """A union of key sets without attributes. `name` is what weights of this part are called."""

    kinds: tuple[Kind, ...]
    name: str
    node: tree.Expression


@dataclass(frozen=True)
class Lone:
    """A kind that is a mixer by itself."""

    kind: Kind
    name: str
    node: tree.Expression


@dataclass(frozen=True)
class Altered:
    """A change of the sequence: `insert` or `merge`."""

    kind: Kind
    name: str
    node: tree.Expression


@dataclass(frozen=True)
class Cases:
    """heads, when, choose or route; of type keys if all its cases are. `path` is where the block is written, for budgets."""

    word: str
    arguments: ChooseArguments | RouteArguments | None
    cases: tuple[tuple[tree.Case, Typed], ...]
    name: str
    node: tree.Expression
    path: tuple[str, ...]


@dataclass(frozen=True)
class Attributed:
    """A mixer under settings."""

    body: Typed
    settings: Given
    name: str
    node: tree.Expression


@dataclass(frozen=True)
class Several:
    """A + B, A >> B or gate(A, B)."""

    word: Literal["sum", "chain", "gate"]
    parts: tuple[Typed, ...]
    arguments: GateArguments | None
    name: str
    node: tree.Expression


@dataclass(frozen=True)
class Wrapped:
    """context(M, ...) or select(A, ...)."""

    word: Literal["context", "select"]
    body: Typed
    arguments: ContextArguments | SelectArguments
    name: str
    node: tree.Expression


@dataclass(frozen=True)
class Wrong:
    """Something that was reported; it goes with everything."""

    node: tree.Expression
    name: str = "wrong"


Typed = Keys | Lone | Altered | Cases | Attributed | Several | Wrapped | Wrong


def type_of(typed: Typed) -> Type:
    """Key set, mixer or change; `wrong` if that cannot be said."""
    match typed:
        case Wrong():
            return "wrong"
        case Altered():
            return "change"
        case Keys():
            return "keys"
        case Cases(cases=cases):
            found = {type_of(body) for _, body in cases}
            return "wrong" if "wrong" in found else "keys" if found == {"keys"} else "mixer"
        case _:
            return "mixer"


def parts_of(typed: Typed) -> tuple[Typed, ...]:
    """The expressions directly inside."""
    match typed:
        case Cases(cases=cases):
            return tuple(body for _, body in cases)
        case Attributed(body=body) | Wrapped(body=body):
            return (body,)
        case Several(parts=parts):
            return parts
        case _:
            return ()


def change_in(typed: Typed) -> Altered | None:
    """A change of the sequence anywhere in an expression."""
    if isinstance(typed, Altered):
        return typed
    return next((found for part in parts_of(typed) if (found := change_in(part)) is not None), None)


def renamed(typed: Typed, name: str) -> Typed:
    """The same expression under the name of a mix."""
    return replace(typed, name=name)


def join(left: Typed, right: Typed, node: tree.Expression) -> Typed:
    """The union of two expressions of type keys; it distributes over the cases of blocks."""
    match left, right:
        case Wrong(), _:
            return left
        case _, Wrong():
            return right
        case Cases(), _:
            return replace(left, cases=tuple((case, join(body, right, node)) for case, body in left.cases), node=node)
        case _, Cases():
            return replace(right, cases=tuple((case, join(left, body, node)) for case, body in right.cases), node=node)
        case Keys(), Keys():
            kinds = tuple(dict.fromkeys((*left.kinds, *right.kinds)))
            return Keys(kinds, f"{left.name}_{right.name}" if left.name != right.name else left.name, node)
        case _:
            raise AssertionError("only key sets are joined")


def size_and_depth(typed: Typed) -> tuple[int, int]:
    """How many kinds an expression has, and how deep it is."""
    if isinstance(typed, Keys):
        found = [_size_and_depth_of_kind(kind) for kind in typed.kinds]
        return sum(size for size, _ in found), max(depth for _, depth in found)
    sizes = [size_and_depth(part) for part in parts_of(typed)]
    return max(1, sum(size for size, _ in sizes)), 1 + max((depth for _, depth in sizes), default=0)


def _size_and_depth_of_kind(kind: Kind) -> tuple[int, int]:
    """How many kinds stand in a kind, itself included: arguments may be unions of others."""
    if not _holds_kinds(type(kind)):
        return 1, 1
    inner = [_size_and_depth_of_kind(one) for value in vars(kind).values() for one in kinds_in(value)]
    return 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)


@functools.cache
def _holds_kinds(owner: type[Kind]) -> bool:
    """Whether an argument of a kind may be a kind or a union."""
    kept = [member for field in fields(owner).values() for member in field.types]
    return any(takes_keys((member,)) or (isinstance(member, type) and issubclass(member, Kind)) for member in kept)


def kinds_in(value: object) -> tuple[Kind, ...]:
    """The kinds that an argument holds."""
    held = value if isinstance(value, tuple) else (value,)
    return tuple(one for one in held if isinstance(one, Kind))
