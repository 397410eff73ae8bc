"""One launch of a built model: its variants, the keys that each lets each head see, and who runs it in which phase.

Legend: T new tokens of S sequences; H query heads; G KV heads; D key width; E value width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import latent
from .attention_reference import Reference
from .autocast import cast, cast_parts, check_dtypes, enabled, off
from .batch import Batch
from .intervals import Form, HeadGroup, HeadGroups, fixed_rows, has_shares
from .keys import KeyPart
from .latent import Expand
from .sizes import alike
from .softmax import Provider, begin, finish
from .storage import LayerCache

COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
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
        return self.holds if COMPARE[self.operator](length, self.right) else not self.holds


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
        self.variants = tuple(replace(variant, groups=HeadGroups(variant.groups)) for variant in variants)
        self.name, self.scale, self.cap, self.reference = name, scale, cap, reference
        self.form = Form.of([group for variant in variants for group in variant.groups], causal)
        self.providers: dict[str, Provider] = {}

    def prepare(self, device: torch.device) -> None:
        """Make what calls on this device read, so that a compiled model finds it made."""
        for variant in self.variants:
            if not has_shares(variant.groups):
                fixed_rows(variant.groups, self.form, device)

    def choose(self, phase: str, length: int) -> int:
        """The number of the first variant whose guards all agree, or -1 where this mix does nothing."""
        for number, variant in enumerate(self.variants):
            if all(guard.agrees(phase, length) for guard in variant.guards):
                return number
        return -1

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        cache: LayerCache | None,
        sink_logit: Tensor | None = None,
        persistent: KeyPart | None = None,
        expand: Expand | None = None,
    ) -> Tensor:
        """Each sequence by the variant that its phase and length choose; a batch may hold several.

        With `expand`, k is a latent and v a rotated key, [T, 1, width], of which it makes keys and values. Under
        `torch.autocast` in its dtype. Raises ValueError for q, k and v of several dtypes without it.
        """
        casts = enabled(q)
        if casts:
            q, k, v = cast(q, k, v)
        parts = begin(k, v, batch, cache) if expand is None else latent.begin(k, v, expand, batch, cache)
        if persistent is not None:
            parts = (*parts, persistent)
        if casts:
            parts = cast_parts(parts)
        check_dtypes(q, parts)
        with off(q) if casts else nullcontext():
            o = self._attend(q, parts[0].v_width, parts, batch, sink_logit)
        finish(k, v, batch, cache)
        return o

    def _attend(self, q: Tensor, width: int, parts: tuple[KeyPart, ...], batch: Batch, sink_logit: Tensor | None) -> Tensor:
        provider = self.providers[batch.phase]
        chosen = [self.choose(batch.phase, length) for length in batch.totals] if self.variants[0].guards else [0]
        if alike(chosen) and chosen[0] >= 0:
            groups = self.variants[chosen[0]].groups
            return provider(q, parts, groups, self.form, batch, self.scale, self.cap, sink_logit)
        return self._apart(provider, q, width, parts, batch, chosen, sink_logit)

    def _apart(
        self,
        provider: Provider,
        q: Tensor,
        width: int,
        parts: tuple[KeyPart, ...],
        batch: Batch,
        chosen: list[int],
        sink_logit: Tensor | None,
    ) -> Tensor:
        """The sequences of each variant together; zeros where `chosen` is -1."""
        o = q.new_zeros(*q.shape[:2], width)
        for number in sorted({*chosen} - {-1}):
            sequences = [s for s, own in enumerate(chosen) if own == number]
            sub, index = batch.select([own == number for own in chosen])
            some = tuple(part.select(sequences) for part in parts)
            groups = self.variants[number].groups
            out = provider(q[index], some, groups, self.form, sub, self.scale, self.cap, sink_logit)
            o = o.index_copy(0, index, out.to(o.dtype))
        return o
