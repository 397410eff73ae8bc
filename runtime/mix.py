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
from .asking import remember
from .attention_reference import Reference
from .autocast import cast, cast_parts, check_dtypes, enabled, off
from .batch import Batch
from .intervals import Form, HeadGroup, HeadGroups, fixed_rows, has_shares
from .keys import KeyPart
from .latent import Expand
from .pooled import keep
from .scorers import Net
from .selector import Selector
from .sizes import alike
from .softmax import ListProvider, Provider, begin, finish
from .sources import Source
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


@dataclass(frozen=True, eq=False)
class Lent:
    """What a call brings to the choices of a launch."""

    net: Net | None = None
    source: Source | None = None

    def select(self, sequences: list[int], index: Tensor) -> Lent:
        """Of some sequences, whose tokens stand at `index`."""
        net = None if self.net is None else self.net.select(index)
        return Lent(net, None if self.source is None else self.source.select(sequences, index))

    def bound(self, groups: tuple[HeadGroup, ...]) -> tuple[HeadGroup, ...]:
        """The groups with choices that know it."""
        if self.net is None and self.source is None:
            return groups
        return HeadGroups(replace(group, choices=tuple(map(self._bound, group.choices))) for group in groups)

    def _bound(self, one: Selector) -> Selector:
        if one.previous:
            assert self.source is not None, "an earlier layer lends its choice"
            return replace(one, source=self.source, net=self.source.net, held=self.source.held)
        if one.keys == "summary":
            assert self.source is not None, "another branch lends its summary"
            return replace(one, source=self.source)
        return replace(one, net=self.net) if one.keys in ("indexer", "learned", "chunks") else one


class Mix:
    """q [T, H, D], k [T, G, D], v [T, G, E] -> [T, H, E].

    `providers`: who runs it in each phase, `choosing` who runs variants in which content chooses keys, and `absorbs` whether
    few queries read latents as they are kept; set by `BuiltModel.use`.
    """

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
        self.choosing: dict[str, ListProvider] = {}
        self.absorbs: dict[str, bool] = {}

    @property
    def chooses(self) -> bool:
        """Whether content chooses some keys in some variant."""
        return any(group.choices for variant in self.variants for group in variant.groups)

    @property
    def selectors(self) -> list[Selector]:
        """Those that a cache holds something for, each once."""
        found = (one for variant in self.variants for group in variant.groups for one in group.choices)
        return list({one.held: one for one in found if one.held}.values())

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
        net: Net | None = None,
        lends: dict[str, Source] | None = None,
        source: Source | None = None,
    ) -> Tensor:
        """Each sequence by the variant that its phase and length choose; a batch may hold several.

        With `expand`, k is a latent and v a rotated key, [T, 1, width], of which it makes keys and values. Under
        `torch.autocast` in its dtype. Raises ValueError for q, k and v of several dtypes without it. `net`: what scores by
        weights of its own; `lends`: where it leaves what later layers choose by; `source`: what an earlier one has left.
        """
        casts = enabled(q)
        if casts:
            q, k, v = cast(q, k, v)
        if expand is not None and cache is not None and self._reads_latents(expand, batch, lends):
            parts = latent.begin_absorbed(k, v, expand, batch, cache)
            return expand.release(self.over(expand.absorb(q), parts, batch, sink_logit, cache))
        parts = begin(k, v, batch, cache) if expand is None else latent.begin(k, v, expand, batch, cache)
        if cache is not None and cache.plan.pooled:
            keep(cache, parts, batch, net)
        turned = q
        if lends is not None:
            held = next((one.held for one in self.selectors), "") if cache is not None else ""
            lends["choice"] = lends["summary"] = Source(q, parts, cache, held, net)
        if persistent is not None:
            parts = (*parts, persistent)
        o = self.over(q, parts, batch, sink_logit, cache, Lent(net, source))
        finish(*((k, v) if expand is None else latent.joined(k, v)), batch, cache)
        if cache is not None and self.chooses:
            remember(self.selectors, cache, turned, batch)
        return o

    def _reads_latents(self, expand: Expand, batch: Batch, lends: dict[str, Source] | None) -> bool:
        """Whether queries go to the latents, rather than keys and values made of them to the queries."""
        alone = not self.chooses and lends is None  # who chooses keys pools and lends each head's own
        return alone and expand.plain and latent.few(batch) and self.absorbs.get(batch.phase, False)

    def over(
        self,
        q: Tensor,
        parts: tuple[KeyPart, ...],
        batch: Batch,
        sink_logit: Tensor | None = None,
        cache: LayerCache | None = None,
        lent: Lent | None = None,
    ) -> Tensor:
        """The same over given parts of keys; nothing is stored."""
        casts = enabled(q)
        if casts:
            (q,), parts = cast(q), cast_parts(parts)
        check_dtypes(q, parts)
        with off(q) if casts else nullcontext():
            return self._attend(q, parts, batch, sink_logit, cache, lent or Lent())

    def _attend(
        self,
        q: Tensor,
        parts: tuple[KeyPart, ...],
        batch: Batch,
        sink_logit: Tensor | None,
        cache: LayerCache | None,
        lent: Lent,
    ) -> Tensor:
        chosen = [self.choose(batch.phase, length) for length in batch.totals] if self.variants[0].guards else [0]
        if alike(chosen) and chosen[0] >= 0:
            return self._run(q, parts, chosen[0], batch, sink_logit, cache, lent)
        return self._apart(q, parts, batch, chosen, sink_logit, cache, lent)

    def _run(
        self,
        q: Tensor,
        parts: tuple[KeyPart, ...],
        number: int,
        batch: Batch,
        sink_logit: Tensor | None,
        cache: LayerCache | None,
        lent: Lent,
    ) -> Tensor:
        """All sequences by one variant."""
        groups = self.variants[number].groups
        if any(group.choices for group in groups):
            groups = lent.bound(groups)
            choosing = self.choosing[batch.phase]
            return choosing(q, parts, groups, self.form, batch, self.scale, self.cap, sink_logit, cache)
        return self.providers[batch.phase](q, parts, groups, self.form, batch, self.scale, self.cap, sink_logit)

    def _apart(
        self,
        q: Tensor,
        parts: tuple[KeyPart, ...],
        batch: Batch,
        chosen: list[int],
        sink_logit: Tensor | None,
        cache: LayerCache | None,
        lent: Lent,
    ) -> Tensor:
        """The sequences of each variant together; zeros where `chosen` is -1."""
        o = q.new_zeros(*q.shape[:2], parts[0].v_width)
        for number in sorted({*chosen} - {-1}):
            sequences = [s for s, own in enumerate(chosen) if own == number]
            sub, index = batch.select([own == number for own in chosen])
            some = tuple(part.select(sequences) for part in parts)
            out = self._run(q[index], some, number, sub, sink_logit, cache, lent.select(sequences, index))
            o = o.index_copy(0, index, out.to(o.dtype))
        return o
