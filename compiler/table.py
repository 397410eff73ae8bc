"""The resolved table: for every layer and KV group which mixer owns it, as rows. compiler/table_text.py prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from attnc.compiler.attributes import Attributes
from attnc.compiler.cache_spec import CacheRow, cache_spec
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_keys, print_value
from attnc.compiler.spec import (
    Attention,
    Chain,
    Change,
    Choose,
    Condition,
    Context,
    Gate,
    Heads,
    Mixer,
    Mixing,
    Route,
    Select,
    Spec,
    Sum,
    When,
)
from attnc.compiler.value import Origin, Value
from attnc.compiler.walk import CACHED_PHASES, is_softmax, joined, reachable, selected_scope

SHOWN_ELSEWHERE = ("rope", "rope_dim", "rope_scale", "positions")
"""Attributes with a column of their own."""

FOLLOWING = {"kv_heads": "heads", "qk_heads": "heads", "value_dim": "head_dim"}
"""Attributes that follow another unless they are said."""


class TableRow(Value):
    """One owner: KV groups first..last (both included) of some equal layers.

    `scope` is the part of the layer, `joined` how it is joined to the parts before it (`+`, `>>`, `gate(softmax)`), and `case`
    says when it holds (`length < 8192`, `choose: streaming`). `on_heads` is false for what is not made of heads, `by_itself`
    true for a kind that is a mixer by itself.
    `attributes` are those that differ from the model's; `cache` holds the rows of the first of the layers that keep its keys or
    state, if it can run with a cache.
    """

    layers: tuple[int, ...]
    scope: str
    joined: str = ""
    first: int
    last: int
    on_heads: bool = True
    by_itself: bool = False
    case: str
    mixer: str
    positions: str
    attributes: dict[str, str]
    cache: tuple[CacheRow, ...]
    origin: Origin


@dataclass(frozen=True)
class _Place:
    """What the rows inside a mixer have in common; `phases`: those in which a cache may meet it.

    `within`: where, in a block that shares its softmax, the parts of its own lie.
    """

    defaults: Attributes | None
    layers: tuple[int, ...]
    cache: tuple[CacheRow, ...]
    scope: str = ""
    within: str = ""
    joined: str = ""
    first: int = 0
    last: int | None = None
    case: str = ""
    phases: frozenset[str] = CACHED_PHASES

    def when(self, case: str, phases: frozenset[str]) -> _Place:
        """The same where something holds."""
        return replace(self, case=f"{self.case}, {case}" if self.case else case, phases=phases)


def table(spec: Spec, dtype: str = "bfloat16") -> tuple[TableRow, ...]:
    """The rows, in the order of the layers that first have them; layers of one rule lie in one row."""
    rules: dict[int, list[int]] = {}
    for layer in spec.layers:
        rules.setdefault(id(layer.mixer), []).append(layer.index)
    firsts = {layers[0]: tuple(layers) for layers in rules.values()}
    caches: dict[int, list[CacheRow]] = {index: [] for index in firsts}
    for row in cache_spec(spec, dtype):
        if row.layer in caches:
            caches[row.layer].append(row)
    return tuple(
        row
        for index, layers in firsts.items()
        for row in _rows(spec.layers[index].mixer, _Place(spec.defaults, layers, tuple(caches[index])))
    )


def _rows(mixer: Mixer, at: _Place) -> Iterator[TableRow]:
    """The rows of a mixer, in the order written."""
    match mixer:
        case Sum() | Chain() | Gate():
            sign = {"sum": "+", "chain": ">>"}.get(mixer.node, "")
            for place, (name, part) in enumerate(zip(mixer.names, mixer.parts, strict=True)):
                how = _gate(mixer) if isinstance(mixer, Gate) else sign if place else ""
                yield from _rows(part, replace(at, scope=joined(at.scope, name), joined=how))
        case Select(keep=keep, by=by, mixer=inner):
            yield from _rows(
                inner,
                replace(at, scope=selected_scope(mixer, at.scope)).when(
                    f"{keep} of the tokens, by {print_value(by)}", at.phases
                ),
            )
        case Context(name=name, memory=memory):
            yield _row(mixer, at)
            yield from _rows(memory, replace(at, scope=joined(at.scope, name), joined=""))
        case Heads() | When() | Choose() | Route():
            yield from _cases(mixer, at)
        case _:
            yield _row(mixer, at)


def _gate(gate: Gate) -> str:
    """`gate(sigmoid)`, with the projections that its branches share."""
    return f"gate({gate.by}" + f", shared = {print_value(gate.shared)}" * bool(gate.shared) + ")"


def _cases(mixer: Heads | When | Choose | Route, at: _Place) -> Iterator[TableRow]:
    """The rows of a block: those of its cases."""
    match mixer:
        case Heads(cases=cases):
            for one in cases:
                yield from _case(one.mixer, one.name, replace(at, first=one.first, last=one.last))
        case When(cases=branches):
            cached = {id(branch): left for branch, left in reachable(branches, at.phases)}
            for branch in branches:
                left = cached.get(id(branch), frozenset())
                yield from _case(branch.mixer, branch.name, at.when(_condition(branch.condition), left))
        case Choose() | Route():
            per = f"chunk({mixer.chunk})" if isinstance(mixer, Route) and mixer.chunk else mixer.per
            for index, alternative in enumerate(mixer.alternatives):
                chosen = isinstance(mixer, Route) or index == 0
                name = alternative.name
                shown = f"{mixer.node} per {per}: {name}" + " (default)" * (isinstance(mixer, Choose) and chosen)
                yield from _case(alternative.mixer, name, at.when(shown, at.phases if chosen else frozenset()))


def _case(mixer: Mixer, name: str, at: _Place) -> Iterator[TableRow]:
    """The rows of a case, which is a part of its own unless it shares the block's softmax."""
    if isinstance(mixer, Attention):
        return _rows(mixer, at)
    name = joined(at.within, name)
    return _rows(mixer, replace(at, within=name) if is_softmax(mixer) else replace(at, scope=joined(at.scope, name), within=""))


def _row(mixer: Attention | Mixing | Context | Change, at: _Place) -> TableRow:
    a = None if isinstance(mixer, Change) else mixer.attributes
    last = at.last if at.last is not None else a.kv_heads - 1 if a is not None else 0
    return TableRow(
        layers=at.layers,
        scope=at.scope,
        joined=at.joined,
        first=at.first,
        last=last,
        on_heads=_on_heads(mixer),
        by_itself=isinstance(mixer, Mixing),
        case=at.case,
        mixer=_shown(mixer),
        positions="" if a is None or (isinstance(mixer, Mixing) and a.rope is None) else _positions(a),
        attributes={} if a is None else _different(a, at.defaults),
        cache=tuple(row for row in at.cache if at.phases and row.scope == at.scope and _overlaps(row, at.first, last)),
        origin=mixer.origin,
    )


def _on_heads(mixer: Attention | Mixing | Context | Change) -> bool:
    if isinstance(mixer, Mixing):
        return MIXERS[mixer.kind.kind].per_head
    return not isinstance(mixer, Change)


def _shown(mixer: Attention | Mixing | Context | Change) -> str:
    match mixer:
        case Attention(keys=keys):
            return print_keys(keys)
        case Context(name=name, segment=segment, persistent=persistent):
            return f"context({name}, segment = {segment}" + f", persistent = {persistent}" * (persistent > 0) + ")"
        case _:
            return print_value(mixer.kind)


def _overlaps(row: CacheRow, first: int, last: int) -> bool:
    return row.kv_heads == 0 or (row.first <= last and first <= row.first + row.kv_heads - 1)


def _condition(condition: Condition | None) -> str:
    return "else" if condition is None else f"{condition.left} {condition.operator} {condition.right}"


def _positions(a: Attributes) -> str:
    if a.rope is None:
        return "none"
    shown = [f"rope {print_value(a.rope)}"]
    if a.rope_dim != a.head_dim:
        shown.append(f"on a shared {a.rope_dim}" if a.kv_latent else f"on {a.rope_dim} of {a.head_dim}")
    if a.rope_scale is not None:
        shown.append(print_value(a.rope_scale))
    if a.positions != "absolute":
        shown.append(a.positions)
    return ", ".join(shown)


def _different(a: Attributes, defaults: Attributes | None) -> dict[str, str]:
    """Attributes that the model alone would not give, except those of the column of positions and those that follow others."""
    found = {
        key: print_value(value)
        for key, value in vars(a).items()
        if key not in SHOWN_ELSEWHERE and (defaults is None or value != getattr(defaults, key))
    }
    follow = [key for key, led in FOLLOWING.items() if key in found and found.get(led) == found[key]]
    return {key: value for key, value in found.items() if key not in follow}
