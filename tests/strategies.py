"""Random legal values, drawn from the bounds that the kinds declare."""

from __future__ import annotations

from hypothesis import strategies as st

from attnc.compiler.fields import Field, fields
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.value import Share

SHARES = (5, 10, 25, 40, 50, 75, 100)


def numbers(field: Field, largest: int) -> st.SearchStrategy[int]:
    """Whole numbers within a field's bounds, at most `largest`."""
    assert field.bounds is not None
    return st.integers(int(field.bounds.low), min(int(field.bounds.high), largest))


@st.composite
def kinds(draw: st.DrawFn, name: str, largest: int = 40) -> Kind:
    """A value of one kind; token counts are at most `largest`, so that small sequences can tell values apart."""
    owner = MIXERS[name].parameters
    given: dict[str, object] = {}
    divisors = {field.name: field for field in fields(owner).values() if field.divides}
    for field in fields(owner).values():
        if field.name in divisors:
            continue
        if int in field.types and Share in field.types and draw(st.integers(0, 3)) == 0:
            given[field.name] = Share(percent=draw(st.sampled_from(SHARES)))
        elif int in field.types:
            given[field.name] = draw(numbers(field, largest))
        elif Share in field.types:
            given[field.name] = Share(percent=draw(st.sampled_from((0, *SHARES))))
    for name_, field in divisors.items():
        assert field.divides is not None
        whole = given[field.divides.field]
        if isinstance(whole, int):
            part = draw(st.integers(1, max(1, largest // 4)))
            given[name_] = part
            given[field.divides.field] = max(1, whole // part) * part
    return owner(**given)


def key_sets(largest: int = 40) -> st.SearchStrategy[Kind]:
    """A static key set of the sequence's own keys."""
    static = [name for name, mixer in MIXERS.items() if mixer.type == "keys" and not mixer.own_keys(mixer.examples[0])]
    return st.sampled_from(static).flatmap(lambda name: kinds(name, largest))
