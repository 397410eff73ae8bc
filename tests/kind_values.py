"""Every parameter of every kind, reached from its declaration, and random values of kinds that keep their rules.

For what is about checking alone: the strategies of strategies.py draw what is built.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from hypothesis import assume
from hypothesis import strategies as st

from attnc.compiler import check_text
from attnc.compiler.fields import Field, fields, is_value, items, tag, takes_keys
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Attention, Mixing, Spec
from attnc.compiler.value import Share, Value
from attnc.dsl import Diagnostic, SpecError

HEAD = "model m { vocab = 100, dim = 64, layers = 2, heads = 8, kv_heads = 4, head_dim = 64, ffn = none, norm = rms(1e-6) }\n"
KINDS = [name for name, mixer in MIXERS.items() if mixer.type != "change"]


class Parameter(NamedTuple):
    """A field, and how an expression looks in which it has a value: `whole("7")`."""

    path: str
    field: Field
    whole: Callable[[str], str]


def parameters(name: str) -> list[Parameter]:
    """All parameters of a kind, those of its nested words too."""
    return list(_parameters(MIXERS[name].parameters, name, lambda text: text))


def _parameters(owner: type[Value], path: str, wrap: Callable[[str], str]) -> Iterator[Parameter]:
    for field in fields(owner).values():

        def whole(text: str, field: Field = field) -> str:
            return wrap(call(owner, {field.key: text}))

        yield Parameter(f"{path}.{field.key}", field, whole)
        for member in (*field.types, *items(field.types)):
            if is_value(member):
                inner = whole if member in field.types else (lambda text, whole=whole: whole(f"[{text}]"))
                yield from _parameters(member, f"{path}.{field.key}.{tag(member)}", inner)


def call(owner: type[Value], given: dict[str, str]) -> str:
    """`word(...)` with what is given, and the least of what is required."""
    arguments = {field.key: sample(field) for field in fields(owner).values() if field.required} | given
    shown = [f"{key} = {text}" for key, text in arguments.items()]
    return f"{tag(owner)}({', '.join(shown)})" if shown else tag(owner)


def sample(field: Field) -> str:
    """Some value of a field."""
    for member in field.types:
        if typing.get_origin(member) is Literal:
            return str(typing.get_args(member)[0])
        if is_value(member):
            return call(member, {})
    assert field.bounds is not None
    if int in field.types or float in field.types:
        return str(max(math.ceil(field.bounds.low), min(64, int(field.bounds.high))))
    return f"{field.bounds.share_high:g}%"


@st.composite
def values(draw: st.DrawFn, field: Field, depth: int = 2) -> Any:
    """Any value of a field within its bounds."""
    if takes_keys(field.types):
        return draw(st.none() | kinds("routed", depth - 1).map(lambda kind: (kind,))) if depth else None
    members = [member for member in field.types if depth or not is_value(member)]
    member = draw(st.sampled_from(members))
    if typing.get_origin(member) is Literal:
        return draw(st.sampled_from(typing.get_args(member)))
    if member is type(None):
        return None
    if member is bool:
        return draw(st.booleans())
    if typing.get_origin(member) is tuple:
        inner = list(items(field.types))
        words = [word for one in inner if typing.get_origin(one) is Literal for word in typing.get_args(one)]
        classes = [one for one in inner if is_value(one)]
        one = st.sampled_from(words) if words else st.sampled_from(classes).flatmap(lambda owner: instances(owner, depth - 1))
        return tuple(draw(st.lists(one, min_size=1, max_size=2, unique_by=lambda value: value if words else type(value))))
    if is_value(member):
        return draw(kinds(tag(member), depth - 1) if issubclass(member, Kind) else instances(member, depth - 1))
    bounds = field.bounds
    if member is Share:
        low, high = (bounds.share_low, bounds.share_high) if bounds else (0.0, 100.0)
        return Share(percent=draw(st.sampled_from([p for p in (0.0, 0.5, 10.0, 50.0, 100.0) if low <= p <= high])))
    assert bounds is not None, field
    if member is int:
        return draw(st.integers(int(bounds.low), int(bounds.high)))
    return float(
        draw(st.sampled_from([x for x in (bounds.low, 0.0, 1e-4, 0.25, 1.0, bounds.high) if bounds.low <= x <= bounds.high]))
    )


@st.composite
def instances(draw: st.DrawFn, owner: type[Value], depth: int = 2) -> Any:
    """A value of a class, with what is required and some of the rest; its own rules hold."""
    found = fields(owner)
    optional = [key for key, field in found.items() if not field.required]
    chosen = set(draw(st.lists(st.sampled_from(optional), max_size=3))) if optional else set()
    given = {key: draw(values(field, depth)) for key, field in found.items() if field.required or key in chosen}
    if owner is MIXERS["routed"].parameters:  # what it cannot do without
        if getattr(given["unit"], "word", "") == "clusters":
            given["selection"] = "noncausal"
        elif not chosen & {"top_k", "top_p", "threshold"}:
            given["top_k"] = draw(st.integers(1, 64))
    value = owner(**{found[key].name: value for key, value in given.items()})
    broken = [*value.broken(), *(MIXERS[value.kind].rules(value) if isinstance(value, Kind) else ())]
    assume(not broken)
    return value


def kinds(name: str, depth: int = 2) -> st.SearchStrategy[Any]:
    """A value of a kind, as a spec may write it."""
    return instances(MIXERS[name].parameters, depth).filter(_divides)


def _divides(kind: Kind) -> bool:
    for field in fields(type(kind)).values():
        if field.divides:
            part, whole = getattr(kind, field.name), getattr(kind, field.divides.field)
            if part != 1 and not (isinstance(whole, int) and whole % part == 0):
                return False
    return True


def spec(expression: str, rest: str = "") -> Spec:
    return check_text(f"{HEAD}{rest}\nlayers {{ 0: full, 1: {expression} }}")


def problems(expression: str, rest: str = "") -> list[Diagnostic]:
    try:
        spec(expression, rest)
    except SpecError as error:
        return list(error.diagnostics)
    return []


def kind_of(found: Spec) -> Kind:
    mixer = found.layers[1].mixer
    assert isinstance(mixer, Attention | Mixing)
    return mixer.kind if isinstance(mixer, Mixing) else mixer.keys[0]
