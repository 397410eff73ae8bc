"""`--reduce`: the same spec in small, for tests and trials. One layer of each distinct row, narrow heads, short windows.

No two different parameters become equal, and nothing that was sparse becomes dense.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from attnc.compiler import reduced_kinds
from attnc.compiler.attributes import Attributes
from attnc.compiler.data import to_data
from attnc.compiler.mixer import Kind
from attnc.compiler.reduced_heads import HeadMap
from attnc.compiler.spec import Attention, Condition, Context, Layer, Mixer, Mixing, Model, Spec, When
from attnc.compiler.walk import attentions, children, every, rebuilt

NARROW = 32
"""The widest head of a reduced spec."""

VOCABULARY = 256
SHAPES = ("heads", "kv_heads", "qk_heads", "head_dim", "value_dim", "rope_dim", "rope_scale")
COUNTS = ("n", "aligned")
"""Sizes of kinds that count tokens, where they are numbers."""

NOT_TOKENS = ("conv",)
"""Kinds whose sizes are no counts of tokens that a query reaches: they are small, and stay."""

UNITS = ("block_local", "stride", "power_of_two")
"""Kinds whose n is a unit: at least eight fit into a reduced sequence."""


def reduce(spec: Spec, tokens: int = 64) -> tuple[Spec, tuple[str, ...]]:
    """The reduced spec for sequences of `tokens` tokens, and a line `what: old -> new` for each thing that changed."""
    layers = _distinct(spec.layers)
    mixers = [layer.mixer for layer in layers]
    counts = _token_map(mixers, spec.model.context, tokens)
    around = [one.attributes for one in _contexts(mixers)]
    widths = _width_map([leaf.attributes for mixer in mixers for leaf in _leaves(mixer)] + around)
    heads = HeadMap(mixers)
    small = [heads.of(mixer, lambda leaf: _leaf(leaf, counts, widths, tokens)) for mixer in mixers]
    small = [_counted(mixer, counts) for mixer in small]
    model = _model(spec, len(layers), mixers[0], small[0], counts)
    defaults = _defaults(spec.defaults, next(_leaves(small[0])).attributes)
    changes = [("layers", spec.model.layers, len(layers)), ("dim", spec.model.dim, model.dim)]
    changes += [("vocab", spec.model.vocab, model.vocab)]
    if spec.model.feed_forward and model.feed_forward:
        changes.append(("ffn", spec.model.feed_forward.width, model.feed_forward.width))
    changes += [("width", old, new) for old, new in widths.items()]
    changes += [("kv_heads", old, new) for old, new in heads.changes()]
    changes += [("tokens", old, new) for old, new in counts.items()]
    lines = tuple(f"{what}: {old} -> {new}" for what, old, new in changes if old != new)
    text = "".join(f"# reduced, {line}\n" for line in lines) + spec.text
    numbered = enumerate(zip(small, layers, strict=True))
    rows = tuple(Layer(index=index, mixer=mixer, origin=layer.origin) for index, (mixer, layer) in numbered)
    return replace(spec, model=model, layers=rows, defaults=defaults, budgets=(), text=text, reduced=tokens), lines


def _distinct(layers: tuple[Layer, ...]) -> list[Layer]:
    """One layer of each distinct mixer, in order; with `qk_from = previous` the layer that it takes from comes before it."""
    found: list[Layer] = []
    seen: set[tuple[str, str]] = set()
    own, kept = "", ""  # signatures of the last layer with q and k of its own: of all layers, and of those kept
    source: Layer | None = None
    for layer in layers:
        signature, inside = _signature(layer.mixer), attentions(layer.mixer)
        takes = any(one.attributes.qk_from for one in inside)
        new = (signature, own if takes else "") not in seen
        seen.add((signature, own if takes else ""))
        if takes and new and kept != own:
            assert source is not None, "the checker finds a layer to take from"
            found.append(source)
            kept = own
        if new:
            found.append(layer)
        if inside and not takes:
            own, source = signature, layer
            kept = signature if new else kept
    return found


def _signature(mixer: Mixer) -> str:
    """A mixer's content without where it is written."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(inner) for key, inner in value.items() if key != "origin"}
        return [stripped(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(stripped(to_data(mixer)), sort_keys=True)


def _leaves(mixer: Mixer) -> Iterator[Attention | Mixing]:
    inner = children(mixer)
    if isinstance(mixer, Attention | Mixing):
        yield mixer
    for one in inner:
        yield from _leaves(one)


def _contexts(mixers: Iterable[Mixer]) -> Iterator[Context]:
    for mixer in mixers:
        yield from (one for one in every(mixer) if isinstance(one, Context))


def _token_map(mixers: list[Mixer], context: int | None, tokens: int) -> dict[int, int]:
    """Token counts -> reduced ones: divided by one power of two, and kept apart where that would make two equal."""
    kinds = [kind for mixer in mixers for leaf in _leaves(mixer) if isinstance(leaf, Attention) for kind in leaf.keys]
    sizes = [
        (kind, key, getattr(kind, key)) for kind in kinds if kind.kind not in NOT_TOKENS for key in COUNTS if hasattr(kind, key)
    ]
    inside = [one for kind in kinds for one in reduced_kinds.within(kind)]
    segments = {one.segment: set(_chunk(one.memory.kind)) for one in _contexts(mixers)}
    reaches = [size for _, _, size in sizes if isinstance(size, int)] + list(segments)
    units = [size for kind, key, size in sizes if isinstance(size, int) and (key == "aligned" or kind.kind in UNITS)]
    units += [size for word, key, size in inside if word in reduced_kinds.UNITS and key == "n"]
    counted = [size for _, _, size in inside]
    chosen = max((size for word, _, size in inside if word == reduced_kinds.TOP_K), default=0)
    chunks = [chunk for mixer in mixers for leaf in _leaves(mixer) if isinstance(leaf, Mixing) for chunk in _chunk(leaf.kind)]
    wanted = {*reaches, *counted, *chunks, *_lengths(mixers), *_positions(mixers), context or 0} - {0, 1}
    divisor = 1
    most, unit = max(reaches, default=0), max((*units, *chunks), default=0)
    while most // divisor > tokens // 4 or unit // divisor > tokens // 8 or chosen // divisor > tokens // 2:
        divisor *= 2
    blocks = any(kind.kind in ("stride", "power_of_two") or (key == "aligned" and size != 1) for kind, key, size in sizes)
    ones = any(key == "n" and size == 1 for _, key, size in sizes)  # 1 stays 1, and alone
    smallest = 2 if blocks or ones or chunks else 1
    return _increasing(sorted(wanted), divisor, smallest, _aligned(kinds) | segments, tokens // 2)


def _chunk(kind: Kind) -> Iterator[int]:
    """The tokens after which a kind's weights change, where they do so in chunks."""
    chunk = getattr(kind, "chunk", 1)
    if isinstance(chunk, int) and chunk > 1:
        yield chunk


def _increasing(sizes: list[int], divisor: int, smallest: int, aligned: dict[int, set[int]], most: int) -> dict[int, int]:
    """Divided sizes, each larger than the one before; an aligned window stays a multiple of its block, if possible the same."""
    mapped: dict[int, int] = {}
    last = smallest - 1
    for size in sizes:
        blocks = [(block, mapped[block]) for block in sorted(aligned.get(size, ()))]
        unit = math.lcm(*(new for _, new in blocks))
        same = [size // old * new for old, new in blocks]
        least = max(size // divisor, last + 1)
        fits = same and last < same[0] <= most and same[0] % unit == 0
        last = mapped[size] = same[0] if fits else -(-least // unit) * unit
    return mapped


def _aligned(kinds: list[Kind]) -> dict[int, set[int]]:
    """The blocks of the aligned windows of each size, other than one block alone."""
    found: dict[int, set[int]] = {}
    for kind in kinds:
        sizes = vars(kind)
        if sizes.get("aligned", 1) not in (1, sizes.get("n")):
            found.setdefault(sizes["n"], set()).add(sizes["aligned"])
        for size, part in reduced_kinds.divided(kind):
            found.setdefault(size, set()).add(part)
    return found


def _model(spec: Spec, layers: int, first: Mixer, small: Mixer, counts: dict[int, int]) -> Model:
    """The body: dim in its old proportion to the heads' width, the feed-forward in its old proportion to dim."""
    old, new = next(_leaves(first)).attributes, next(_leaves(small)).attributes
    dim, wide, narrow = spec.model.dim, old.heads * old.head_dim, new.heads * new.head_dim
    reduced = narrow if dim == wide else min(max(32, round(dim * narrow / wide / 8) * 8), 256)
    if dim != wide and reduced == narrow:
        reduced += 8
    ffn = spec.model.feed_forward
    if ffn is not None:
        width = max(8, round(ffn.width / dim * reduced / 8) * 8)
        ffn = replace(ffn, width=width + 8 * (width == reduced and ffn.width != dim))
    vocab = min(spec.model.vocab, VOCABULARY)
    while vocab < spec.model.vocab and vocab in (reduced, ffn.width if ffn else 0):
        vocab += 8
    context = None if spec.model.context is None else counts[spec.model.context]
    return replace(spec.model, layers=layers, dim=reduced, vocab=vocab, feed_forward=ffn, context=context)


def _defaults(defaults: Attributes | None, first: Attributes) -> Attributes | None:
    """The model's attributes with the shapes of the first mixer."""
    if defaults is None:
        return None
    return replace(defaults, **{key: getattr(first, key) for key in SHAPES})


def _lengths(mixers: Iterable[Mixer]) -> Iterator[int]:
    for mixer in mixers:
        if isinstance(mixer, When):
            yield from (
                case.condition.right for case in mixer.cases if case.condition and isinstance(case.condition.right, int)
            )
        yield from _lengths(children(mixer))


POSITIONS = (("temperature", "floor_scale"), ("rope_scale", "original"))
"""Attributes whose values count positions."""


def _positions(mixers: list[Mixer]) -> Iterator[int]:
    for mixer in mixers:
        for leaf in _leaves(mixer):
            for key, inner in POSITIONS:
                value = getattr(getattr(leaf.attributes, key), inner, None)
                if value is not None:
                    yield int(value)


def _width_map(found: list[Attributes]) -> dict[int, int]:
    """Widths of heads -> reduced ones: in proportion to the widest, even, and kept apart."""
    widths = sorted({width for a in found for width in (a.head_dim, a.value_dim, a.rope_dim) if width is not None})
    if widths[-1] <= NARROW:
        return {width: width for width in widths}
    mapped: dict[int, int] = {}
    least, following = 2 * len(widths), max(NARROW, 2 * len(widths)) + 2  # each width below leaves two for the narrower
    for width in reversed(widths):
        even = round(width * NARROW / widths[-1] / 2) * 2
        following = mapped[width] = max(least, min(even, following - 2))
        least -= 2
    return dict(sorted(mapped.items()))


def _leaf(leaf: Attention | Mixing, counts: dict[int, int], widths: dict[int, int], tokens: int) -> Attention | Mixing:
    a = leaf.attributes
    update: dict[str, Any] = {key: widths[getattr(a, key)] for key in ("head_dim", "value_dim")}
    update["rope_dim"] = None if a.rope_dim is None else widths[a.rope_dim]
    for key, inner in POSITIONS:
        value = getattr(a, key)
        if getattr(value, inner, None) is not None:
            update[key] = replace(value, **{inner: counts.get(int(getattr(value, inner)), 1)})
    attributes = replace(a, **update)
    if isinstance(leaf, Mixing):
        sizes: dict[str, Any] = {key: counts[chunk] for key, chunk in zip(("chunk",), _chunk(leaf.kind), strict=False)}
        return replace(leaf, attributes=attributes, kind=replace(leaf.kind, **sizes))
    return replace(leaf, attributes=attributes, keys=tuple(_kind(kind, counts, tokens) for kind in leaf.keys))


def _kind(kind: Kind, counts: dict[int, int], tokens: int) -> Kind:
    """The kind with its token counts mapped."""
    update = {
        key: counts.get(getattr(kind, key), getattr(kind, key)) for key in COUNTS if isinstance(getattr(kind, key, None), int)
    }
    return reduced_kinds.reduced(replace(kind, **update), counts, tokens)


def _counted(mixer: Mixer, counts: dict[int, int]) -> Mixer:
    """Lengths in conditions, and segments of contexts, mapped like all counts of tokens."""

    def mapped(condition: Condition | None) -> Condition | None:
        if condition is None or not isinstance(condition.right, int):
            return condition
        return replace(condition, right=counts.get(condition.right, condition.right))

    if isinstance(mixer, When):
        cases = tuple(replace(c, condition=mapped(c.condition)) for c in mixer.cases)
        mixer = replace(mixer, cases=cases)
    if isinstance(mixer, Context):
        mixer = replace(mixer, segment=counts[mixer.segment])
    return rebuilt(mixer, lambda inner: _counted(inner, counts))
