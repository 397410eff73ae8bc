"""One launch of a built model: its variants, the keys that each lets each head see, and who runs it in which phase.

Legend: T new tokens of S sequences; H query heads; G KV heads; D key width; E value width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .attention_reference import Reference
from .batch import Batch
from .keys import KeyPart
from .softmax import Form, HeadGroup, Provider, begin, finish
from .storage import LayerCache

COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": int.__lt__,
    "<=": int.__le__,
    ">": int.__gt__,
    ">=": int.__ge__,
    "==": int.__eq__,
}


REFERENCE = Reference()


@dataclass(frozen=True)
class Guard:
    """`length < 8192` or `phase == train`, that must hold or (`holds` false) must not."""

    left: str
    operator: str
    right: int | str
    holds: bool = True

    def agrees(self, phase: str, length: int) -> bool:
        """Whether the guard lets this phase and length through."""
        if self.left == "phase":
            return (phase == self.right) == self.holds
        assert isinstance(self.right, int), "lengths are compared with numbers"
        return COMPARE[self.operator](length, self.right) == self.holds


@dataclass(frozen=True)
class Variant:
    """The head groups while all guards agree."""

    groups: tuple[HeadGroup, ...]
    guards: tuple[Guard, ...] = ()


class Mix:
    """q [T, H, D], k [T, G, D], v [T, G, E] -> [T, H, E]. `providers`: who runs it in each phase; `BuiltModel.use` sets it."""

    def __init__(
        self,
        name: str,
        variants: tuple[Variant, ...],
        *,
        causal: bool,
        scale: float,
        cap: float | None = None,
        reference: Reference = REFERENCE,
    ) -> None:
        self.name, self.variants, self.scale, self.cap, self.reference = name, variants, scale, cap, reference
        self.form = Form.of([group for variant in variants for group in variant.groups], causal)
        self.providers: dict[str, Provider] = {}

    def variant(self, phase: str, length: int) -> Variant | None:
        """The first variant whose guards all agree, or None where this mix does nothing."""
        agreeing = (v for v in self.variants if all(guard.agrees(phase, length) for guard in v.guards))
        return next(agreeing, None)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        cache: LayerCache | None,
        sink_logit: Tensor | None = None,
        persistent: KeyPart | None = None,
    ) -> Tensor:
        """Each sequence by the variant that its phase and length choose; a batch may hold several."""
        parts = begin(k, v, batch, cache)
        if persistent is not None:
            parts = (*parts, persistent)
        provider = self.providers[batch.phase]
        chosen = [self.variant(batch.phase, length) for length in batch.totals]
        distinct = list(dict.fromkeys(variant for variant in chosen if variant is not None))
        if len(distinct) == 1 and None not in chosen:
            o = provider(q, parts, distinct[0].groups, self.form, batch, self.scale, self.cap, sink_logit)
        else:
            o = q.new_zeros(*q.shape[:2], v.shape[2])
            for variant in distinct:
                sequences = [s for s, own in enumerate(chosen) if own is variant]
                sub, index = batch.select([own is variant for own in chosen])
                some = tuple(part.select(sequences) for part in parts)
                out = provider(q[index], some, variant.groups, self.form, sub, self.scale, self.cap, sink_logit)
                o = o.index_copy(0, index, out.to(o.dtype))
        finish(k, v, batch, cache)
        return o
