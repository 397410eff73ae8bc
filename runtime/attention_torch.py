"""The provider `torch`: PyTorch's scaled_dot_product_attention, a block of queries at a time over the keys that it can see.

Legend: T new tokens of S sequences, N of each; H query heads, G KV heads, R = H // G; D key width; E value width; L keys.
Masks have at most BLOCK rows. Differentiable. Only slots that hold a key are read, so whatever lies in others cannot leak.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_flash import flash_attention, suits
from .batch import Batch
from .intervals import Form, HeadGroup
from .keys import KeyPart, Run
from .spans import Numbers, even, exact, head_spans, indices, reach, visible

BLOCK = 256
"""Queries that share one mask."""


def torch_attention(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
) -> Tensor:
    """A `Provider` (softmax.py): q [T, H, D] -> [T, H, E]. The keys of all parts are laid side by side and share a softmax."""
    batch, parts = exact(batch, parts)
    width = parts[0].v_width
    if batch.tokens == 0:
        return q.new_zeros(0, q.shape[1], width)
    if isinstance(scale, Tensor):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, scale = (q.to(wide) * scale.to(wide).unsqueeze(-1)).to(q.dtype), 1.0
    elif scale == 0.0:  # a plain mean; PyTorch's kernels multiply their own -inf by the scale, and 0 * -inf is NaN
        q, scale = torch.zeros_like(q), 1.0
    plain = cap is None and sink_logit is None
    if plain and suits(q, parts, groups, form, batch) and not (even(batch, parts) and _all_before(groups, form, batch)):
        return flash_attention(q, parts[0], groups, form, batch, scale)
    heads = sum(band.last - band.first + 1 for band in parts[0].bands)
    score = _Score(scale, cap, sink_logit, q.shape[1] // heads, shared=parts[0].bands[0].k.head == 0)
    spans = head_spans(groups, parts)
    if even(batch, parts):
        return _sequences(
            q.reshape(batch.sequences, batch.max_new, *q.shape[1:]), parts, spans, form, batch, None, score
        ).flatten(0, 1)
    outputs = []
    for s, tokens in enumerate(torch.split(q, list(batch.sizes))):
        if len(tokens):
            outputs.append(_sequences(tokens.unsqueeze(0), parts, spans, form, batch, s, score).squeeze(0))
    return torch.cat(outputs)


def _all_before(groups: tuple[HeadGroup, ...], form: Form, batch: Batch) -> bool:
    """Whether every query sees all keys up to its own, for which scaled_dot_product_attention chooses among more kernels."""
    last = batch.pasts[0] + batch.max_new - 1
    numbers = (Numbers.of(group, batch.totals[0], form.causal) for group in groups)
    return form.causal and all(number.sees_all_before(batch.pasts[0], last) for number in numbers)


class _Score:
    """What turns products of q and k into weights: scale, soft cap, sink logit [H]; R query heads read a KV head. `shared`:
    whether all KV heads are the same keys and values.
    """

    def __init__(self, scale: float, cap: float | None, sink_logit: Tensor | None, repeat: int, shared: bool = False) -> None:
        self.scale, self.cap, self.sink_logit, self.repeat, self.shared = scale, cap, sink_logit, repeat, shared

    def heads(self, first: int, last: int) -> slice:
        """The query heads of KV heads first..last."""
        return slice(first * self.repeat, (last + 1) * self.repeat)


def _sequences(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    spans: list[tuple[int, int, HeadGroup]],
    form: Form,
    batch: Batch,
    sequence: int | None,
    score: _Score,
) -> Tensor:
    """q [S, N, H, D] of one sequence, or of all if they are even -> [S, N, H, E]."""
    which = sequence or 0
    outputs = []
    for first, last, group in spans:
        heads = score.heads(first, last)
        numbers = Numbers.of(group, batch.totals[which], form.causal)
        runs = tuple(
            run for part in parts if part.counts[which] for run in part.read(first, first if score.shared else last, sequence)
        )
        sink = None if score.sink_logit is None else score.sink_logit[heads]
        if runs:
            outputs.append(
                _span(q[:, :, heads].transpose(1, 2), runs, numbers, batch.pasts[which], score, sink).transpose(1, 2)
            )
        else:
            outputs.append(q.new_zeros(*q.shape[:2], heads.stop - heads.start, parts[0].v_width))
    return torch.cat(outputs, dim=2)


def _span(q: Tensor, runs: tuple[Run, ...], numbers: Numbers, past: int, score: _Score, sink: Tensor | None) -> Tensor:
    """q [S, H, N, D], the queries of heads that see alike, the first at position `past` -> [S, H, N, E]."""
    n = q.shape[2]
    k, v = (torch.cat(x, dim=2) if len(x) > 1 else x[0] for x in ([run.k for run in runs], [run.v for run in runs]))
    plain = sink is None and score.cap is None
    own = len(runs) == 1 and runs[0].start == past and k.shape[2] == n
    if plain and own and numbers.causal and numbers.sees_all_before(past, past + n - 1):
        return F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, scale=score.scale, enable_gqa=score.repeat > 1)
    device = q.device
    positions = torch.cat([torch.arange(run.start, run.start + run.k.shape[2], device=device) for run in runs])
    outputs = []
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        seen = indices(reach(numbers, past + begin, past + end - 1), runs)
        if not seen:
            outputs.append(q.new_zeros(q.shape[0], q.shape[1], end - begin, v.shape[3]))
            continue
        k_seen, v_seen, j = (_stretches(x, seen, dim) for x, dim in ((k, 2), (v, 2), (positions, 0)))
        exact = end - begin == 1 and not numbers.strides  # one query: reach has named its keys and no others
        i = torch.arange(past + begin, past + end, device=device)
        mask = None if exact else visible(numbers, i[:, None], j[None, :])
        outputs.append(_block(q[:, :, begin:end], k_seen, v_seen, mask, score, sink))
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _stretches(x: Tensor, seen: list[tuple[int, int]], dim: int) -> Tensor:
    pieces = [x.narrow(dim, low, high - low) for low, high in seen]
    return torch.cat(pieces, dim=dim) if len(pieces) > 1 else pieces[0]


def _block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, score: _Score, sink: Tensor | None) -> Tensor:
    """q [S, H, n, D], k [S, G, L, D], v [S, G, L, E], mask [n, L] or None (all seen), sink [H] -> [S, H, n, E]."""
    if score.shared:  # the queries of all heads as those of one head, side by side
        heads, n = q.shape[1], q.shape[2]
        mask, sink = (None if mask is None else mask.repeat(heads, 1)), (None if sink is None else sink.repeat_interleave(n))
        one = _Score(score.scale, score.cap, None, 1)
        return _block(q.flatten(1, 2).unsqueeze(1), k, v, mask, one, sink).view(len(q), heads, n, v.shape[3])
    empty = None
    if mask is not None:
        empty = ~mask.any(dim=-1, keepdim=True)
        mask = mask | empty  # a softmax over nothing is NaN, in the gradient too; its result is replaced below
    if score.cap is not None:
        o = _capped(q, k, v, mask, score, sink)
    else:
        bias: Tensor | None = mask
        if sink is not None:
            k, v, bias = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), _with_sink(q, k.shape[2], mask, sink)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=score.scale, enable_gqa=score.repeat > 1)
    return o if empty is None else o.masked_fill(empty, 0.0)


def _with_sink(q: Tensor, keys: int, mask: Tensor | None, sink: Tensor) -> Tensor:
    """The additive mask [1, H, n, L + 1] whose last column is a key with the sink's logit: one a head, or one a query."""
    bias = torch.zeros(q.shape[2], keys, dtype=q.dtype, device=q.device)
    if mask is not None:
        bias = bias.masked_fill(~mask, float("-inf"))
    column = sink.to(q.dtype).view(q.shape[1], -1, 1).expand(-1, q.shape[2], 1)
    return torch.cat((bias.expand(q.shape[1], -1, -1), column), dim=-1).unsqueeze(0)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, score: _Score, sink: Tensor | None) -> Tensor:
    """Softmax of cap * tanh(logit / cap), which scaled_dot_product_attention does not know; softmax in fp32 or float64."""
    assert score.cap is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.reshape(q.shape[0], k.shape[1], score.repeat, *q.shape[2:])  # [S, G, R, n, D]
    logits = torch.einsum("sgrnd,sgld->sgrnl", grouped.to(wide), k.to(wide)) * score.scale
    logits = score.cap * torch.tanh(logits / score.cap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    if sink is not None:
        column = sink.to(wide).view(1, k.shape[1], score.repeat, -1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat((logits, column), dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : k.shape[2]]
    return torch.einsum("sgrnl,sgle->sgrne", weights, v.to(wide)).to(q.dtype).flatten(1, 2)
