"""One launch in one phase at one length: its inputs, and how much there is to do.

Legend: T = B * N tokens of B sequences; H query heads on G KV heads; D key width; E value width; L keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnc.bench.launches import Launch
from attnc.compiler import intervals as arithmetic
from attnc.compiler.intervals import Intervals, Near

PHASES = ("forward", "backward", "decode")
RUNTIME = {"forward": "prefill", "backward": "train", "decode": "decode"}
"""What the runtime calls the phase whose keys are seen."""


@dataclass(frozen=True, eq=False)
class Work:
    """What every participant is given.

    q       [T, H, D]; decode: [B, H, D], one new token behind `length` - 1 others
    k, v    [T, G, D] and [T, G, E]; decode: None, the keys lie in `part`
    o_grad  [T, H, E]; backward alone
    part    the keys as the runtime's KeyPart: the sequence's own, or those of a cache
    groups  what each KV head sees, with `form` and `batch` as the runtime's providers take them
    """

    launch: Launch
    phase: str
    length: int
    q: Tensor
    k: Tensor | None
    v: Tensor | None
    o_grad: Tensor | None
    sink_logit: Tensor | None
    part: Any
    groups: tuple[Any, ...]
    batch: Any

    @property
    def sequences(self) -> int:
        """B."""
        return int(self.batch.sequences)

    @property
    def form(self) -> Any:
        """What the launch's kernels are made for."""
        return self.launch.mix.form

    @property
    def planned(self) -> Any:
        """The provider, or the providers of its heads, that a built model would run on this kind of device."""
        return self.launch.planned[self.q.device.type][RUNTIME[self.phase]]

    @property
    def unions(self) -> tuple[tuple[int, Intervals], ...]:
        """(KV heads, what they see in numbers), for each group."""
        return unions(self.launch, self.groups, self.length)

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key that it sees, of all heads and sequences."""
        queries = 1 if self.phase == "decode" else self.length
        shown = sum(heads * arithmetic.pairs(union, queries, self.length) for heads, union in self.unions)
        return self.sequences * self.launch.repeat * shown

    @property
    def flops(self) -> float:
        """Useful operations: two products of matrices, five in the backward pass."""
        products = 2.5 if self.phase == "backward" else 1.0
        return 2 * self.pairs * (self.launch.key_width + self.launch.value_width) * products

    @property
    def bytes(self) -> float:
        """Bytes that a decode step cannot avoid: the keys and values that are seen, the query and the result."""
        launch = self.launch
        rows = self.pairs / launch.repeat + self.sequences * launch.heads
        return rows * (launch.key_width + launch.value_width) * self.q.element_size()

    def visible(self, group: Any, i: Tensor, j: Tensor) -> Tensor:
        """[n, L]: which keys at positions j [L] the queries at positions i [n] of a group see."""
        seen: Tensor = group.visible(i[:, None], j[None, :], self.length)
        return seen

    @property
    def spans(self) -> tuple[tuple[int, int, Any], ...]:
        """(first, last, group): KV heads that see alike and whose keys are kept alike."""
        return tuple(self.launch.folder.runtime("spans").head_spans(self.groups, (self.part,)))

    def seen(self, first: int, last: int, group: Any) -> tuple[Tensor, Tensor]:
        """Decode: the keys [B, heads, L, D] and values that the new token of a span sees, side by side in order."""
        runs = self.part.read(first, last)
        positions = torch.cat([torch.arange(run.start, run.start + run.k.shape[2], device=self.q.device) for run in runs])
        chosen = self.visible(group, positions.new_tensor([self.length - 1]), positions)[0].nonzero().squeeze(1)
        k, v = (torch.cat(x, dim=2).index_select(2, chosen) for x in ([run.k for run in runs], [run.v for run in runs]))
        return k, v


def make(launch: Launch, phase: str, length: int, batch: int, dtype: torch.dtype, device: torch.device) -> Work | str:
    """The work with drawn inputs, or why the launch has none in this phase at this length."""
    if phase == "decode" and not launch.mix.form.causal:
        return "a layer that looks ahead does not decode"
    groups = launch.groups(RUNTIME[phase], length)
    if groups is None:
        return f"the layer does nothing in this phase at {length} tokens"
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    sink = torch.randn(launch.heads, generator=generator, device=device) if launch.sink_logit else None
    maker = _decode if phase == "decode" else _whole
    return maker(launch, phase, length, batch, draw, sink, groups)


def _whole(launch: Launch, phase: str, length: int, batch: int, draw: Any, sink: Tensor | None, groups: Any) -> Work:
    tokens = batch * length
    q, k, v = (
        draw(tokens, heads, width)
        for heads, width in (
            (launch.heads, launch.key_width),
            (launch.kv_heads, launch.key_width),
            (launch.kv_heads, launch.value_width),
        )
    )
    places = torch.zeros(batch, length, dtype=torch.int64, device=q.device)
    _, laid = launch.folder.runtime("batch").Batch.of(places, phase=RUNTIME[phase])
    o_grad = draw(tokens, launch.heads, launch.value_width) if phase == "backward" else None
    return Work(launch, phase, length, q, k, v, o_grad, sink, laid.keys(k, v), groups, laid)


def _decode(launch: Launch, phase: str, length: int, batch: int, draw: Any, sink: Tensor | None, groups: Any) -> Work:
    q = draw(batch, launch.heads, launch.key_width)
    plan = replace(launch.plan, keys_from=None, states=())
    cache = launch.folder.runtime("cache").Cache([plan], batch, length, q.dtype, q.device)
    cache.counts = (length - 1,) * batch
    cache.lengths.fill_(length - 1)
    layer = cache.layer(0)
    for flat in (layer.k, layer.v):
        flat.copy_(draw(*flat.shape))
    places = torch.zeros(batch, 1, dtype=torch.int64, device=q.device)
    _, laid = launch.folder.runtime("batch").Batch.of(places, cache, phase=phase)
    part = layer.part(laid, written=True)
    return Work(launch, phase, length, q, None, None, None, sink, part, groups, laid)


def unions(launch: Launch, groups: tuple[Any, ...], length: int) -> tuple[tuple[int, Intervals], ...]:
    """(KV heads, what they see in numbers), for each group of a launch at a length."""
    return tuple((group.last - group.first + 1, _intervals(group, launch, length)) for group in groups)


def _intervals(group: Any, launch: Launch, length: int) -> Intervals:
    """A runtime head group in the compiler's numbers, for `pairs`."""
    module, causal = launch.folder.runtime("intervals"), launch.mix.form.causal
    form = module.Form(len(group.near), len(group.strides), len(group.powers), causal)
    sink, *numbers = module.row(group, form, length)
    near = [numbers[at : at + 4] for at in range(0, 4 * len(group.near), 4)]
    found = [Near(align=align, shift=shift, back=back, ahead=ahead) for align, shift, back, ahead in near]
    return Intervals(sink=sink, near=tuple(found), strides=group.strides, powers=group.powers, causal=causal)
