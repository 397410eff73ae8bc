"""The provider `reference`: masks and formulas as they are written, keys gathered one sequence and head group at a time.

Legend: T new tokens of S sequences; H query heads, G KV heads, R = H // G; D key width; E value width; n queries, L keys.
Any float dtype, differentiable; float16 and bfloat16 are computed in float32. Slow and obvious: everything else is compared
with it, and a mix that no kernel can say runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .choices import Asker
from .choices_reference import chosen_by_formula, chunk_part
from .intervals import Form, HeadGroup
from .keys import KeyPart, Run
from .rotary import Rope, angles, rotate_by
from .spans import exact, head_spans
from .storage import LayerCache

BLOCK = 64
"""Queries at a time, so that memory stays within BLOCK x L x D a head."""

Weights = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""weights(logits [H, n, L], visible [n, L], sink_logit [H] or None) -> [H, n, L], 0 where not visible."""


def softmax_weights(logits: Tensor, visible: Tensor, sink_logit: Tensor | None) -> Tensor:
    """exp(logit) over its sum over the visible keys and the sink, whose value is 0; 0 for a query that sees nothing."""
    hidden = logits.masked_fill(~visible, float("-inf"))
    top = hidden.detach().amax(dim=-1, keepdim=True)
    if sink_logit is not None:
        top = torch.maximum(top, sink_logit.detach().to(top.dtype).view(-1, 1, 1))
    top = top.masked_fill(top == float("-inf"), 0.0)
    mass = torch.exp(hidden - top)
    total = mass.sum(dim=-1, keepdim=True)
    if sink_logit is not None:
        total = total + torch.exp(sink_logit.to(top.dtype).view(-1, 1, 1) - top)
    return mass / total.masked_fill(total == 0, 1.0)


@dataclass(frozen=True)
class Reference:
    """A `Provider` (softmax.py) that asks `HeadGroup.visible` for masks and `weights` for what logits become.

    rope: for `positions = consecutive`. q and k come un-rotated; each query rotates every key that it sees by the key's rank
    among them in order of position, and itself by its own key's rank. Keys without a position are neither ranked nor rotated.
    """

    weights: Weights = softmax_weights
    rope: Rope | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a softmax of keys that were turned before, as PyTorch's own attention is."""
        return self.weights is softmax_weights and self.rope is None

    def __call__(
        self,
        q: Tensor,
        parts: tuple[KeyPart, ...],
        groups: tuple[HeadGroup, ...],
        form: Form,  # noqa: ARG002 (the masks say it all)
        batch: Batch,
        scale: float | Tensor,
        cap: float | None = None,
        sink_logit: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """q [T, H, D] -> [T, H, E]."""
        batch, parts = exact(batch, parts)
        wide = torch.promote_types(q.dtype, torch.float32)
        repeat = q.shape[1] // sum(band.last - band.first + 1 for band in parts[0].bands)
        spans, rows = head_spans(groups, parts), []
        for s, tokens in enumerate(torch.split(q.to(wide), list(batch.sizes))):
            outputs = []
            for first, last, group in spans:
                heads = slice(first * repeat, (last + 1) * repeat)
                factor = scale[heads].to(wide).view(-1, 1, 1) if isinstance(scale, Tensor) else scale
                sink = None if sink_logit is None else sink_logit[heads]
                runs = [run for part in parts if part.counts[s] for run in part.read(first, last, s)]
                if runs:
                    queries, found = tokens[:, heads].transpose(0, 1), keys(runs, repeat, wide)
                    asker = Asker(queries, found[0][:, found[2] >= 0], first, last, heads, s, batch, cache)
                    chosen = _chosen(asker, group, (factor, cap)) if group.choices else None
                    more = [chunk_part(one, parts, asker, group) for one in group.choices if one.keys == "chunks"]
                    outputs.append(self._heads(queries, found, group, batch, s, (factor, cap, sink), chosen, more))
                else:
                    outputs.append(q.new_zeros(heads.stop - heads.start, len(tokens), parts[0].v_width, dtype=wide))
            rows.append(torch.cat(outputs).transpose(0, 1))
        return torch.cat(rows).to(q.dtype) if rows else q.new_zeros(0, q.shape[1], parts[0].v_width)

    def _heads(
        self,
        q: Tensor,
        keys: tuple[Tensor, Tensor, Tensor],
        group: HeadGroup,
        batch: Batch,
        s: int,
        numbers: tuple[float | Tensor, float | None, Tensor | None],
        chosen: tuple[Tensor, Tensor] | None,
        more: list[tuple[Tensor, Tensor, Tensor]],
    ) -> Tensor:
        """q [H, N, D] of one sequence -> [H, N, E]; `chosen`: see `_chosen`; `more`: keys of chunks, values, who sees them."""
        assert group.visible is not None, "a group that runs on the reference has a mask"
        k, v, j = keys
        scale, cap, sink = numbers
        outputs = []
        for begin in range(0, q.shape[1], BLOCK):
            block = q[:, begin : begin + BLOCK]
            i = torch.arange(begin, begin + block.shape[1], device=q.device) + batch.pasts[s]
            visible = group.visible(i[:, None], j[None, :], batch.totals[s]) | (j < 0)
            if chosen is not None:
                visible = visible.expand(len(q), len(i), -1).clone()
                visible[:, :, j >= 0] |= chosen[0][:, begin : begin + BLOCK]
            products, values = self._products(block, k, i, j, visible), [v]
            for keys_of, values_of, seen_by in more:
                products = torch.cat((products, block @ keys_of.transpose(1, 2)), dim=-1)
                there = seen_by[begin : begin + BLOCK].expand(*visible.shape[:-1], -1)
                visible, values = torch.cat((visible, there), dim=-1), [*values, values_of]
            logits = products * scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            weights = self.weights(logits, visible, sink)
            every = torch.cat(values, dim=1) if more else v
            seen = every.masked_fill(~visible.flatten(0, -2).any(dim=0).view(1, -1, 1), 0.0)  # 0 * NaN is NaN
            outputs.append(weights @ seen)
        o = torch.cat(outputs, dim=1) if outputs else q.new_zeros(*q.shape[:2], v.shape[2])
        return o if chosen is None else o.masked_fill(chosen[1].unsqueeze(-1), float("nan"))

    def _products(self, q: Tensor, k: Tensor, i: Tensor, j: Tensor, visible: Tensor) -> Tensor:
        """q [H, n, D] times k [H, L, D] -> [H, n, L], rotated by rank first if that is asked for."""
        if self.rope is None:
            return q @ k.transpose(1, 2)
        placed = visible & (j >= 0)
        rank = placed.cumsum(dim=1) - 1  # [n, L]; read only where placed
        cos, sin = angles(self.rope, rank.clamp(min=0))
        turned = rotate_by(k[:, None, :, None], cos, sin).squeeze(-2)  # [H, n, L, D]
        turned = torch.where((j < 0).view(1, 1, -1, 1), k.unsqueeze(1), turned)
        own = (placed & (j < i[:, None])).sum(dim=1)  # [n], the rank that the query's own key has, or would have
        query = rotate_by(q.unsqueeze(-2), *angles(self.rope, own)).squeeze(-2)
        return torch.einsum("hnd,hnld->hnl", query, turned)


def _chosen(asker: Asker, group: HeadGroup, logit: tuple[float | Tensor, float | None]) -> tuple[Tensor, Tensor]:
    """What content adds to the intervals' keys [H, N, L], and where a score is NaN, so that nobody knows [H, N]."""
    choices = [one for one in group.choices if one.keys != "chunks"]
    if not choices:
        none = torch.zeros(*asker.q.shape[:2], 1, dtype=torch.bool, device=asker.q.device)
        return none, none[..., 0]
    with torch.no_grad():
        kept, broken = zip(*(chosen_by_formula(one, asker, logit) for one in choices), strict=True)
    return torch.stack(kept).any(dim=0), torch.stack(broken).any(dim=0)


def keys(runs: list[Run], repeat: int, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [H, L, D], values [H, L, E] and positions [L] of one sequence, repeated for the query heads."""
    k, v = (torch.cat(x, dim=2)[0].to(wide) for x in ([run.k for run in runs], [run.v for run in runs]))
    positions = torch.cat([torch.arange(run.start, run.start + run.k.shape[2], device=k.device) for run in runs])
    return k.repeat_interleave(repeat, dim=0), v.repeat_interleave(repeat, dim=0), positions
