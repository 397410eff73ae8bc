"""Reference masks as text, drawn from the kinds' formulas: a row a query, `#` where it sees the key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnc.compiler.fields import fields
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_keys, print_value
from attnc.compiler.spec import (
    Attention,
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
from attnc.compiler.spec import Chain as ChainOf
from attnc.compiler.value import Value
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.source import Source, Span

if TYPE_CHECKING:
    from attnc.compiler.mixer import Kind

CODE = "A113"


class Picture(Value):
    """The mask of one owner: KV groups first..last (both included) of a part of a layer, in one case of its blocks.

    `own` learned keys stand before the sequence's, seen by every query. `rows`: a row a query, a sign a key of the sequence,
    `#` for seen; none where nothing can be drawn. `unseen` lists what a formula of positions cannot say.
    """

    part: str
    first: int
    last: int
    case: str
    keys: str
    own: int
    rows: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True)
class _Where:
    """How deep in a layer the walk is."""

    part: str = ""
    first: int = 0
    last: int | None = None
    case: str = ""

    def within(self, part: str) -> _Where:
        return replace(self, part=f"{self.part}.{part}" if self.part else part)

    def when(self, case: str) -> _Where:
        return replace(self, case=f"{self.case}, {case}" if self.case else case)


def pictures(spec: Spec, layer: int, length: int) -> tuple[Picture, ...]:
    """One picture for each owner and case of a layer, at sequences of `length` tokens. Imports torch.

    SpecError A113 where no part of the layer has a mask: a state mixer reads no keys, a routed one picks them by content.
    """
    found = tuple(_of_mixer(spec.layers[layer].mixer, _Where(), length))
    if not any(one.rows for one in found):
        raise SpecError([_nothing(spec, layer, found)])
    return found


def _nothing(spec: Spec, layer: int, found: tuple[Picture, ...]) -> Diagnostic:
    """At the layer's rule, whose text is all that a checked spec keeps of it."""
    origin = spec.layers[layer].origin
    source = Source(origin.file, "\n" * (origin.line - 1) + origin.text)
    drawn = sorted({at.index for at in spec.layers if any(map(_draws, _leaves(at.mixer)))})
    help_line = f"layer {drawn[0]} has one: `--mask {drawn[0]}`" if drawn else "no layer of this spec has one"
    what = "; ".join(dict.fromkeys(reason for one in found for reason in one.unseen))
    message = f"layer {layer} has no mask to draw: {what}"
    return Diagnostic(
        CODE, message, Span(source, origin.line - 1, len(source.text)), "key sets that positions decide", help=help_line
    )


def _of_mixer(mixer: Mixer, at: _Where, length: int) -> Iterator[Picture]:
    match mixer:
        case Attention():
            yield _of_attention(mixer, at, length)
        case Mixing(kind=kind):
            shown = print_value(kind)
            yield _undrawn(at, shown, f"`{shown}` carries a state and sees no keys one by one")
        case Change(kind=kind):
            yield _undrawn(at, print_value(kind), f"`{print_value(kind)}` makes a new sequence")
        case Context():
            yield _undrawn(at, mixer.origin.text, "the segments of a context read what its memory returns")
        case _:
            for inner, place in _inside(mixer, at):
                yield from _of_mixer(inner, place, length)


def _inside(mixer: Mixer, at: _Where) -> Iterator[tuple[Mixer, _Where]]:
    """The mixers directly inside of one that is no leaf, each with its place."""
    match mixer:
        case Sum() | ChainOf() | Gate():
            for name, part in zip(mixer.names, mixer.parts, strict=True):
                yield part, at.within(name)
        case Heads(cases=cases):
            for one in cases:
                yield one.mixer, replace(at, first=one.first, last=one.last)
        case When(cases=branches):
            for branch in branches:
                yield branch.mixer, at.when(_condition(branch.condition))
        case Choose(alternatives=alternatives) | Route(alternatives=alternatives):
            for index, other in enumerate(alternatives):
                default = " (default)" * (mixer.node == "choose" and index == 0)
                yield other.mixer, at.when(f"{mixer.node} per {mixer.per}: {other.name}{default}")
        case Select(name=name, mixer=inner):
            yield inner, at.within(name).when(f"among the {mixer.keep} of the tokens that are kept")


def _condition(condition: Condition | None) -> str:
    return "otherwise" if condition is None else f"when {condition.left} {condition.operator} {condition.right}"


def _undrawn(at: _Where, shown: str, reason: str) -> Picture:
    last = at.first if at.last is None else at.last
    return Picture(part=at.part, first=at.first, last=last, case=at.case, keys=shown, own=0, rows=(), unseen=(reason,))


def _of_attention(mixer: Attention, at: _Where, length: int) -> Picture:
    static = [kind for kind in mixer.keys if _is_static(kind)]
    sequence = [kind for kind in static if not MIXERS[kind.kind].own_keys(kind)]
    others = [print_value(kind) for kind in mixer.keys if kind not in static]
    return Picture(
        part=at.part,
        first=at.first,
        last=mixer.attributes.kv_heads - 1 if at.last is None else at.last,
        case=at.case,
        keys=print_keys(mixer.keys),
        own=sum(MIXERS[kind.kind].own_keys(kind) for kind in static),
        rows=_rows(sequence, mixer.attributes.causal, length) if static else (),
        unseen=tuple(f"the keys of `{shown}`, which positions alone do not decide" for shown in others),
    )


def _is_static(kind: Kind) -> bool:
    """Whether positions alone decide which keys it shows, and its formula is there."""
    declared = fields(type(kind)).values()
    return MIXERS[kind.kind].mask is not None and all(field.builds(getattr(kind, field.name)) for field in declared)


def _rows(kinds: list[Kind], causal: bool, length: int) -> tuple[str, ...]:
    """The union of the kinds' own masks."""
    import importlib.metadata  # noqa: F401  torch reads it without importing it

    import torch

    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for kind in kinds:
        mixer = MIXERS[kind.kind]
        assert mixer.mask is not None, "asked only of kinds with a formula"
        seen = seen | mixer.mask(i, j, causal=causal, **mixer.sizes(kind, length))
    return tuple("".join("#" if one else "." for one in row) for row in seen.tolist())


def _leaves(mixer: Mixer) -> Iterator[Mixer]:
    from attnc.compiler.walk import children

    inner = children(mixer)
    for one in inner:
        yield from _leaves(one)
    if not inner:
        yield mixer


def _draws(mixer: Mixer) -> bool:
    return isinstance(mixer, Attention) and any(map(_is_static, mixer.keys))


def picture_text(picture: Picture) -> str:
    """The picture between its rulers: key numbers above, query numbers beside; `p` marks learned keys."""
    groups = f"group {picture.first}" if picture.first == picture.last else f"groups {picture.first}..{picture.last}"
    title = [picture.keys] + [f"KV {groups}"] * bool(picture.rows)
    title += [f"part {picture.part}"] * bool(picture.part) + [picture.case] * bool(picture.case)
    lines = [", ".join(title)]
    length = len(picture.rows)
    if length:
        margin = len(str(length - 1))
        gap = " " * (margin + 2) + (" " * (picture.own + 1) if picture.own else "")
        tens = "".join(f"{key:<10}" for key in range(0, length, 10)).rstrip()
        learned = "p" * picture.own + " " if picture.own else ""
        units = "".join(str(key % 10) for key in range(length))
        lines += [gap + tens, " " * (margin + 2) + learned + units]
        own = "#" * picture.own + " " if picture.own else ""
        lines += [f"{query:>{margin}}  {own}{row}" for query, row in enumerate(picture.rows)]
    lines += [f"not drawn: {reason}" for reason in picture.unseen]
    return "\n".join(lines) + "\n"
