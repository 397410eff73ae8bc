"""The resolved table: for every layer and KV group which mixer owns it, as rows, and as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.compiler.attributes import Attributes
from attnc.compiler.cache_spec import CacheRow, cache_spec
from attnc.compiler.causality import Refusal, causality, refusals
from attnc.compiler.laws import laws
from attnc.compiler.print_value import print_keys, print_value
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import Attention, Choose, Condition, Heads, Mixer, Mixing, Model, Route, Spec, When
from attnc.compiler.value import Origin, Value
from attnc.compiler.walk import CACHED_PHASES, Part, parts, reachable

LAYERS_SHOWN = 44
"""Characters of a list of layers; longer ones are cropped in the text, never in the rows."""

SHOWN_ELSEWHERE = ("rope", "rope_dim", "rope_scale", "positions")
"""Attributes with a column of their own."""


SHOWN_USES = {"training": "training", "chunked_prefill": "prefill in chunks", "prefix_cache": "cached prefixes"}
"""What rule 3 refuses, in words."""


class TableRow(Value):
    """One owner: KV groups first..last (both included) of some equal layers.

    `case` says when it holds (`length < 8192`, `choose: streaming`); `attributes` are those that differ from the model's;
    `cache` holds the rows of the first of the layers that keep its keys, if it can run with a cache.
    """

    layers: tuple[int, ...]
    scope: str
    first: int
    last: int
    case: str
    mixer: str
    positions: str
    attributes: dict[str, str]
    cache: tuple[CacheRow, ...]
    origin: Origin


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
        for part in parts(spec.layers[index].mixer)
        for row in _rows(part.mixer, _Cell(spec, layers, part, caches[index]), 0, None, "", CACHED_PHASES)
    )


class _Cell:
    """What all rows of one part of a layer have in common."""

    def __init__(self, spec: Spec, layers: tuple[int, ...], part: Part, cache: list[CacheRow]) -> None:
        self.spec, self.layers, self.part = spec, layers, part
        self.cache = [row for row in cache if row.scope == part.scope]


def _rows(mixer: Mixer, cell: _Cell, first: int, last: int | None, case: str, phases: frozenset[str]) -> Iterator[TableRow]:
    """The rows of one part; `phases`: those in which a cache may meet it."""
    match mixer:
        case Heads(cases=cases):
            for one in cases:
                yield from _rows(one.mixer, cell, one.first, one.last, case, phases)
        case When(cases=branches):
            cached = {id(branch): left for branch, left in reachable(branches, phases)}
            for branch in branches:
                left = cached.get(id(branch), frozenset())
                yield from _rows(branch.mixer, cell, first, last, _and(case, _condition(branch.condition)), left)
        case Choose(alternatives=alternatives) | Route(alternatives=alternatives):
            for index, alternative in enumerate(alternatives):
                chosen = mixer.node == "route" or index == 0
                shown = f"{mixer.node} per {mixer.per}: {alternative.name}" + " (default)" * (mixer.node == "choose" and chosen)
                yield from _rows(alternative.mixer, cell, first, last, _and(case, shown), phases if chosen else frozenset())
        case Attention() | Mixing():
            end = mixer.attributes.kv_heads - 1 if last is None else last
            yield _row(mixer, cell, first, end, case, bool(phases))


def _row(mixer: Attention | Mixing, cell: _Cell, first: int, last: int, case: str, cached: bool) -> TableRow:
    a = mixer.attributes
    return TableRow(
        layers=cell.layers,
        scope=cell.part.scope,
        first=first,
        last=last,
        case=case,
        mixer=print_keys(mixer.keys) if isinstance(mixer, Attention) else print_value(mixer.kind),
        positions=_positions(a) if isinstance(mixer, Attention) else "",
        attributes=_different(a, cell.spec.defaults),
        cache=tuple(row for row in cell.cache if cached and _overlaps(row, first, last)),
        origin=mixer.origin,
    )


def _overlaps(row: CacheRow, first: int, last: int) -> bool:
    return row.kv_heads == 0 or (row.first <= last and first <= row.first + row.kv_heads - 1)


def _and(case: str, more: str) -> str:
    return f"{case}, {more}" if case else more


def _condition(condition: Condition | None) -> str:
    return "else" if condition is None else f"{condition.left} {condition.operator} {condition.right}"


def _positions(a: Attributes) -> str:
    if a.rope is None:
        return "none"
    shown = [f"rope {print_value(a.rope)}"]
    if a.rope_dim != a.head_dim:
        shown.append(f"on {a.rope_dim} of {a.head_dim}")
    if a.rope_scale is not None:
        shown.append(print_value(a.rope_scale))
    if a.positions != "absolute":
        shown.append(a.positions)
    return ", ".join(shown)


def _different(a: Attributes, defaults: Attributes | None) -> dict[str, str]:
    """Attributes that the model alone would not give, except those of the column of positions."""
    return {
        key: print_value(value)
        for key, value in a
        if key not in SHOWN_ELSEWHERE and (defaults is None or value != getattr(defaults, key))
    }


def table_text(spec: Spec, dtype: str = "bfloat16") -> str:
    """The table as plain text, with the model above it, budgets and laws below."""
    rows = table(spec, dtype)
    header = ("layers", "KV heads", "part", "case", "mixer", "positions", "attributes", "cache")
    cells = [header, *(_cells(row) for row in rows)]
    used = [column for column in range(len(header)) if any(line[column] for line in cells[1:])]
    widths = [max(len(line[column]) for line in cells) for column in used]
    lines = [
        "  ".join(line[column].ljust(width) for column, width in zip(used, widths, strict=True)).rstrip() for line in cells
    ]
    text = [model_text(spec.model, spec.defaults), "", *lines]
    if spec.budgets:
        text += ["", "budgets"]
        for site in spec.budgets:
            unit = "%" if site.share else ""
            bounds = f"{print_value(float(site.low))}{unit}..{print_value(float(site.high))}{unit}"
            text.append(f"  {site.path}  {bounds}, default {print_value(float(site.default))}{unit}, {site.when}")
    text += ["", "laws"]
    text += [f"  {law.name}: {law.sentence if law.owed else f'not owed, {law.reason}'}" for law in laws(spec)]
    refused = refusals(spec)
    if refused:
        text += ["", f"refused, because choices look ahead ({causality(spec)})"]
        text += [f"  {SHOWN_USES[one.use]}: {_refusal(one)}" for one in refused]
    return "\n".join(text) + "\n"


def _refusal(one: Refusal) -> str:
    """Where, why, and what is allowed all the same."""
    but = f"; not in multiples of {one.multiple} tokens" if one.multiple else ""
    return f"layers {ranges(list(one.layers))}, {one.message}{but} ({one.code})"


def model_text(model: Model, defaults: Attributes | None) -> str:
    """The model in one line."""
    ffn = f"{model.feed_forward.kind}({model.feed_forward.width})" if model.feed_forward else "no feed-forward"
    heads = f", {defaults.heads} heads on {defaults.kv_heads} of {defaults.head_dim}" if defaults else ""
    return f"{model.name}: {model.layers} layers of {model.dim}{heads}, {ffn}, {model.norm.kind}, vocabulary {model.vocab}"


def _cells(row: TableRow) -> tuple[str, ...]:
    layers = ranges(list(row.layers))
    shown = layers if len(layers) <= LAYERS_SHOWN else layers[: LAYERS_SHOWN - 3].rpartition(",")[0] + ", ..."
    heads = str(row.first) if row.first == row.last else f"{row.first}..{row.last}"
    attributes = ", ".join(f"{key} = {value}" for key, value in row.attributes.items())
    return (shown, heads, row.scope, row.case, row.mixer, row.positions, attributes, ", ".join(map(_cache, row.cache)))


def _cache(row: CacheRow) -> str:
    if row.kind == "growing":
        return f"growing, {row.bytes_per_token:g} B a token" + f", a slot every {row.step}" * (row.step > 1)
    if row.kind == "fixed":
        return f"state of {row.bytes_fixed / 1024:.1f} KiB"
    if isinstance(row.tokens_kept, int):
        return f"ring of {row.tokens_kept}, {row.bytes_fixed / 1024:.1f} KiB"
    return f"ring of {row.tokens_kept}, {row.bytes_per_token:g} B a token, {row.bytes_fixed / 1024:.1f} KiB"
