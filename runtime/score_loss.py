"""How scores with weights of their own are taught: the distance of what they give units from what attention gives them.

Attention itself is the teacher: DSA's (DeepSeek-V3.2), whose target is a token's share of all heads' weights, and
SeerAttention's distillation (arXiv 2410.13276), whose target is the largest weight in a block of queries and of keys. While
scores alone learn, their launches see everything: DSA's warm-up. Beside a model that learns, launches see what is chosen, and
scores and weights are compared among that: DSA's sparse stage. Made of a block of rows at a time, never T x T.

Legend: N queries of a sequence; H query heads, G KV heads; L keys; C choosers; r rows that ask; U units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .asking import Rows
from .attention_torch import torch_attention
from .batch import Batch
from .choices import Asker, rows_of
from .intervals import FULL, Form, HeadGroup
from .keys import KeyPart
from .pooled import RunKeys, run_keys, text_keys
from .selecting import BLOCK, ranked_units, shown_units, unit_scores
from .selector import Selector
from .spans import Numbers, head_spans, visible


def taught(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A launch that sees everything, q [T, H, D] -> [T, H, E], and the mean KL divergence of its scores from its weights."""
    full = tuple(replace(group, sink=0, near=(FULL,), strides=(), powers=(), choices=()) for group in groups)
    o = torch_attention(q, parts, full, Form.of(full, form.causal), batch, scale, cap, sink_logit)
    return o, score_loss(q, parts, groups, form, batch, scale, cap, chosen=False)


def score_loss(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None,
    chosen: bool,
) -> Tensor:
    """The mean KL divergence of a launch's scores from its weights: of all keys, or of those that are `chosen`."""
    repeat = q.shape[1] // sum(band.last - band.first + 1 for band in parts[0].bands)
    losses = []
    for first, last, group in head_spans(groups, parts):
        heads = slice(first * repeat, (last + 1) * repeat)
        for s, tokens in enumerate(torch.split(q[:, heads].detach(), list(batch.sizes))):
            k, _, learned = text_keys(parts, first, last, s)
            asker = Asker(tokens.transpose(0, 1), k[:, learned:].detach(), first, last, heads, s, batch, None)
            factor = scale[heads] if isinstance(scale, Tensor) else scale
            numbers = Numbers.of(group, batch.totals[s], form.causal) if chosen else None
            nets = [one for one in group.choices if one.net is not None]
            losses += [loss for one in nets for loss in _losses(one, asker, factor, cap, numbers)]
    return torch.cat(losses).mean() if losses else q.new_zeros(())


def _losses(one: Selector, asker: Asker, scale: float | Tensor, cap: float | None, numbers: Numbers | None) -> Iterator[Tensor]:
    """The divergence of every row that has candidates, [C x rows], some rows at a time; with `numbers` of the intervals beside
    it, candidates are those that are chosen.
    """
    rows = rows_of(one, asker)
    keys = run_keys(one, asker.k, asker.first, asker.last, asker.s, asker.batch, None)
    plain, units = replace(one, score="dot"), -(-asker.k.shape[1] // one.unit)
    own = torch.arange(asker.q.shape[1], device=asker.q.device) if rows.row is None else rows.row
    size = max(1, BLOCK // one.many)
    for begin in range(0, rows.q.shape[1], size):
        some = rows.some(begin, begin + size)
        scores, candidate = unit_scores(plain, some, keys, units, 1.0, None)
        if one.keys != "indexer":
            scores = scores * (scale if isinstance(scale, float) else scale.mean())
        there = (own >= begin) & (own < begin + size)
        queries, row = there.nonzero().flatten(), own[there] - begin
        seen = None
        if numbers is not None:
            candidate = _kept(one, some, keys, units, asker, (scale, cap), numbers)
            seen = _seen(one, asker, queries, candidate[:, row], numbers)
        else:
            candidate = candidate.expand_as(scores)
        true = _true(one, asker, queries, row, candidate.shape[1], (scale, cap), seen)
        true = torch.where(candidate, true, 0.0)
        true = true / true.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(true.dtype).tiny)
        ours = torch.where(candidate, scores, float("-inf")).masked_fill(~candidate.any(dim=-1, keepdim=True), 0.0)
        apart = torch.where(true > 0, true.clamp(min=1e-30).log() - ours.log_softmax(dim=-1), 0.0)
        yield (true * apart).sum(dim=-1)[candidate.any(dim=-1)]


@torch.no_grad()
def _kept(
    one: Selector,
    rows: Rows,
    keys: RunKeys,
    units: int,
    asker: Asker,
    logit: tuple[float | Tensor, float | None],
    numbers: Numbers,
) -> Tensor:
    """The units that each row chooses, [C, rows, U]."""
    length = asker.batch.totals[asker.s]
    scores, candidate = unit_scores(one, rows, keys, units, *logit)
    shown = None if one.overlap == "ranked" else shown_units(one, units, rows.last, numbers)
    order, enough = ranked_units(one, scores, candidate, shown, length)
    return torch.zeros_like(enough).scatter(-1, order, enough)


def _seen(one: Selector, asker: Asker, queries: Tensor, kept: Tensor, numbers: Numbers) -> Tensor:
    """What each head's queries see: keys of kept units [C, n, U] and of the intervals, [H, n, L]."""
    places = torch.arange(asker.k.shape[1], device=kept.device)
    keys = kept[..., places // one.unit] | visible(numbers, (queries + asker.past).unsqueeze(1), places.unsqueeze(0))
    return keys.repeat_interleave(len(asker.q) // len(keys), dim=0)


@torch.no_grad()
def _true(
    one: Selector,
    asker: Asker,
    queries: Tensor,
    row: Tensor,
    rows: int,
    logit: tuple[float | Tensor, float | None],
    seen: Tensor | None,
) -> Tensor:
    """What attention gives units, [C, rows, U]: summed over heads by tokens, or the largest weight of a row's queries.

    seen  [H, n, L]: what queries see of what they may see; None: all of it
    """
    scale, cap = logit
    q, k = asker.q[:, queries], asker.k
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(wide).reshape(len(k), len(q) // len(k), *q.shape[1:])
    factor = scale.to(wide).view(len(k), -1, 1, 1) if isinstance(scale, Tensor) else scale
    logits = (grouped @ k.to(wide).unsqueeze(1).transpose(2, 3)).mul(factor).flatten(0, 1)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    later = torch.arange(k.shape[1], device=q.device) > (queries + asker.past).unsqueeze(1)
    hidden = later if seen is None else later | ~seen
    weights = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1).nan_to_num(0.0)  # [H, n, L]; who sees nothing has none
    units = -(-k.shape[1] // one.unit)
    cut = F.pad(weights, (0, units * one.unit - k.shape[1])).reshape(*weights.shape[:2], units, one.unit)
    choosers = {"head": len(q), "group": len(k), "layer": 1}[one.shared]
    if one.keys == "indexer":
        return cut.sum(dim=(0, 3)).unsqueeze(0)
    most = cut.amax(dim=-1).reshape(choosers, -1, *cut.shape[1:3]).amax(dim=1)  # [C, n, U]
    found = most.new_zeros(choosers, rows, units)
    return found.scatter_reduce(1, row.view(1, -1, 1).expand_as(most), most, "amax")
