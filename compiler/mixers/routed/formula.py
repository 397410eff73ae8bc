"""What `routed` keeps, in plain tensors over T x T: copied into built folders as it stands.

Legend: H query heads (keys are repeated for them), N queries at positions i, L keys at positions 0 to L - 1; M runs of keys;
U units; C choosers: H, the KV heads, or 1.
"""

from __future__ import annotations

from typing import Any


def pooled_runs(k: Any, span: int, step: int, pool: str) -> Any:
    """Keys k [H, L, D] -> what stands for each complete run of `span` of them, one begun every `step`: [H, M, D]."""
    import torch

    runs = [k[:, begin : begin + span] for begin in range(0, k.shape[1] - span + 1, step)]
    if pool == "joined":
        return torch.stack([run.flatten(1) for run in runs], dim=1) if runs else k[:, :0].repeat(1, 1, span)
    pools: dict[str, Any] = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}
    return torch.stack([pools[pool](run, dim=1) for run in runs], dim=1) if runs else k[:, :0]


def run_scores(q: Any, k: Any, i: Any, *, runs: Any, score: Any, logit: Any) -> Any:
    """(scores [H, N, M] of the runs; which of them each query has read whole [N, M])."""
    import torch

    (keys, span, step), (word, lse), (scale, cap) = runs, score, logit

    def read(count: int, span: int, step: int) -> Any:
        return torch.arange(count, device=k.device) * step + span <= i[:, None] + 1

    def logits(products: Any) -> Any:
        return products * scale if cap is None else cap * torch.tanh(products * scale / cap)

    def mass(products: Any, whole: Any) -> Any:
        return torch.logsumexp(logits(products).masked_fill(~whole, float("-inf")), dim=-1, keepdim=True)

    if keys == "bounds":
        low, high = (pooled_runs(k, span, step, pool) for pool in ("min", "max"))
        products = torch.maximum(q[:, :, None] * low[:, None], q[:, :, None] * high[:, None]).sum(-1)
    else:
        stands = k if keys == "own" else pooled_runs(k, span, step, keys)
        scale = scale / span if keys == "joined" else scale
        products = q @ stands.transpose(1, 2)
    whole = read(products.shape[2], span, step)
    if word == "dot":
        return products, whole
    total = mass(products, whole)
    if lse is not None:
        coarse = pooled_runs(k, lse[0], lse[1], "mean")
        there = read(coarse.shape[1], lse[0], lse[1])
        if coarse.shape[1]:
            total = torch.where(there.any(dim=1)[:, None], mass(q @ coarse.transpose(1, 2), there), total)
    shares = torch.exp(logits(products) - total)
    return torch.where(whole, shares, torch.zeros_like(shares)), whole


def unit_scores(scores: Any, whole: Any, i: Any, *, unit: int, units: int, runs: Any, fold: str) -> Any:
    """Scores [C, N, M] of runs -> (of units [C, N, U], candidates [N, U]): a unit's runs share a token with it."""
    import torch

    span, step = runs
    found, candidates = [], []
    for u in range(units):
        near = [m for m in range(scores.shape[2]) if m * step < (u + 1) * unit and m * step + span > u * unit]
        there = whole[:, near]
        inside = scores[:, :, near]
        if fold == "max" and near:
            found.append(inside.masked_fill(~there, float("-inf")).amax(dim=-1))
        else:
            found.append(inside.masked_fill(~there, 0.0).sum(dim=-1))
        candidates.append(there.any(dim=1) & ((u + 1) * unit <= i + 1))
    if not found:
        return scores.new_zeros(*scores.shape[:2], 0), whole.new_zeros(len(i), 0)
    return torch.stack(found, dim=-1), torch.stack(candidates, dim=-1)


def kept_units(scores: Any, candidates: Any, shown: Any, amount: Any, bounds: Any, overlap: str) -> Any:
    """Which units are kept, bool [C, N, U]: best first, the lower number where two are equal.

    amount: ("top_k", n), ("top_p", share) or ("threshold", score); bounds: (at least, at most or None).
    """
    import torch

    word, number = amount
    least, most = bounds
    most = scores.shape[2] if most is None else most
    if word == "top_k":
        least = most = min(max(number, least), most)
    used = torch.zeros_like(candidates[:, :1]).long()
    mass = torch.zeros_like(scores[:, :, :1])
    if overlap == "counted":
        used = shown.sum(dim=1, keepdim=True)
        mass = torch.where(shown & candidates, scores, torch.zeros_like(scores)).sum(dim=2, keepdim=True)
    if overlap != "ranked":
        candidates = candidates & ~shown
    candidates = candidates.expand_as(scores)
    order = torch.argsort(torch.where(candidates, scores, float("-inf")), dim=2, descending=True, stable=True)
    order = order.gather(2, torch.argsort(candidates.gather(2, order).int(), dim=2, descending=True, stable=True))
    there = candidates.gather(2, order)
    ordered = torch.where(there, scores.gather(2, order), torch.zeros_like(scores))
    rank = torch.arange(scores.shape[2], device=scores.device)
    kept = rank < least - used
    if word == "top_p":
        before = mass + ordered.cumsum(dim=2) - ordered
        kept = kept | (before < number * (mass + ordered.sum(dim=2, keepdim=True)))
    if word == "threshold":
        kept = kept | (ordered > number)
    kept = kept & (rank < most - used) & there
    return torch.zeros_like(kept).scatter(2, order, kept)


def asking_rows(q: Any, i: Any, asks: Any, call: Any) -> Any:
    """Queries q [H, N, D] at positions i -> a row for each that asks: (its queries [H, n, D], their positions [n], for whom).

    asks: (word, many, every); call: (whether it decodes, what earlier calls asked or None, ...). `joined`: a block's groups of
    `every` queries ask, each read backwards as one.
    """
    import torch

    (word, many, every), (stepwise, earlier, _) = asks, call
    queries = range(len(i))
    if word == "each":
        return [(q[:, t : t + 1], i[t : t + 1], [t]) for t in queries]
    past = int(i[0]) if len(i) else 0
    if word == "last":
        before = 0 if earlier is None else min(past, many - 1)
        if before:
            q = torch.cat((earlier[len(earlier) - before :].transpose(0, 1).to(q.dtype), q), dim=1)
        at = torch.cat((torch.arange(past - before, past, device=i.device), i))
        ends = [(before + t + 1, [t]) for t in queries] if stepwise else [(q.shape[1], list(queries))]
        return [(q[:, max(end - many, 0) : end], at[max(end - many, 0) : end], who) for end, who in ends]
    rows = []
    if word == "joined":
        for b in (i // many).unique():
            who = [t for t in queries if i[t] // many == b]
            groups = [who[c : c + every] for c in range(-int(i[who[0]]) % every, len(who) - every + 1, every)]
            asked = [q[:, group[::-1]].flatten(1) for group in groups]
            at = i[[group[-1] for group in groups]]
            rows.append((torch.stack(asked, dim=1) if asked else q[:, :0].repeat(1, 1, every), at, who))
        return rows
    for who in (
        [[t] for t in queries] if stepwise else [[t for t in queries if i[t] // many == b] for b in (i // many).unique()]
    ):
        last = who[-1]
        begin = int(i[last]) // many * many
        own = [t for t in queries if t <= last and i[t] >= begin and (i[t] % many) % every == 0]
        total, count = q[:, own].sum(dim=1), len(own)
        if earlier is not None and begin < past:
            total, count = total + earlier.to(q.dtype), count + len(range(begin, past, every))
        rows.append((total[:, None] / max(count, 1), i[last : last + 1], who))
    return rows


def row_scores(rows: Any, k: Any, *, runs: Any, score: Any, logit: Any, diagonals: bool) -> Any:
    """Scores [H, r, M] of rows, those of a row's queries added; with `diagonals` of distances back in place of keys."""
    import torch

    found = []
    for q, at, _ in rows:
        scores, whole = run_scores(q, k, at, runs=runs, score=score, logit=logit)
        if len(at) != 1:
            scores = torch.where(whole, scores, torch.zeros_like(scores))
        if diagonals:
            lines = zip(at, scores.unbind(1), strict=True)
            scores = torch.stack([torch.cat((x[:, : p + 1].flip(1), 0 * x[:, p + 1 :]), dim=1) for p, x in lines], dim=1)
        found.append(scores.sum(dim=1))
    return torch.stack(found, dim=1)


def learned_rows(q: Any, k: Any, i: Any, net: Any, asks: Any, unit: int, stepwise: bool) -> Any:
    """SeerAttention's gate: (rows of mapped queries, as of asking_rows; a mapped key for each complete block [H, M, D])."""
    import torch

    q_maps, k_maps, pools, back, turn = net
    plain = back(k, torch.arange(k.shape[1], device=k.device))
    means: dict[str, Any] = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}
    blocks = [plain[:, begin : begin + unit] for begin in range(0, k.shape[1] - unit + 1, unit)]
    sides = [torch.cat([means[pool](block, dim=1) for pool in pools], dim=-1) for block in blocks]
    mapped = [torch.einsum("hoi,hi->ho", k_maps, side) for side in sides]
    stacked = torch.stack(mapped, dim=1) if mapped else k[:, :0]
    keys = turn(stacked, torch.arange(len(blocks), device=k.device) * unit)
    rows = []
    for own, at, who in asking_rows(back(q, i), i, asks, (stepwise, None, None)):
        rows.append((turn(torch.einsum("hoi,hni->hno", q_maps, own), at // asks[1] * asks[1]), at, who))
    return rows, keys


def indexer_scores(net: Any, at: Any, score: str) -> Any:
    """An indexer's queries [J, N, D] at positions at [N], keys [L, D] and weights [J, N] -> scores of tokens [1, N, L]."""
    import torch

    q, k, weights = net
    scores = (torch.clamp(q @ k.T, min=0) * weights[:, :, None]).sum(dim=0, keepdim=True)
    if score == "dot":
        return scores
    hidden = torch.arange(len(k), device=k.device) > at[:, None]
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)


def chosen_keys(
    q: Any,
    k: Any,
    i: Any,
    visible: Any,
    *,
    logit: Any,
    asks: Any,
    unit: Any,
    runs: Any,
    score: Any,
    heads: Any,
    fold: str,
    keep: Any,
) -> Any:
    """Queries q [H, N, D] at positions i, keys k [H, L, D] -> (which keys each keeps [H, N, L], where scores are NaN [H, N]).

    visible(i, j)  what the rest of the union shows
    logit          (scale, soft cap or None)
    unit           its tokens, or `diagonals`
    runs           (what stands for a run, its tokens, from one run to the next)
    score          (word, the same of coarser runs or None)
    asks           (who asks, what this call is): see asking_rows
    heads          (who shares a choice, query heads of a KV head, how their scores become one)
    keep           (amount, bounds, overlap): see kept_units
    """
    import torch

    length = k.shape[1]
    units = length if unit == "diagonals" else -(-length // unit)
    learned = runs[0] == "learned"
    if runs[0] == "summary":  # keys that stand for its chunks in another branch
        k, runs = asks[1][2][0], ("own", *runs[1:])
    if learned:
        rows, k = learned_rows(q, k, i, asks[1][2], asks[0], unit, asks[1][0])
        runs = ("own", *runs[1:])
    else:
        rows = asking_rows(q, i, asks[0], asks[1])
    if not rows:
        return torch.zeros(*q.shape[:2], length, dtype=torch.bool, device=q.device), q.new_zeros(q.shape[:2]) > 0
    diagonals = unit == "diagonals"
    unit = 1 if diagonals else unit
    at = i[[who[-1] for _, _, who in rows]]
    row = [r for t in range(len(i)) for r, (_, _, who) in enumerate(rows) if t in who]
    if runs[0] == "indexer":
        scores = indexer_scores(asks[1][2], at, score[0])
    else:
        scores = row_scores(rows, k, runs=runs, score=score, logit=logit, diagonals=diagonals)
    whole = torch.arange(scores.shape[2], device=k.device) * runs[2] + runs[1] <= at[:, None] + 1
    shared, group, pool = heads
    together = {"head": 1, "group": group, "layer": len(q)}[shared]
    pools: dict[str, Any] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}
    if runs[0] != "indexer":  # which has no heads of the attention's
        scores = pools[pool](scores.reshape(len(q) // together, together, *scores.shape[1:]), dim=1)
    scores, candidates = unit_scores(scores, whole, at, unit=unit, units=units, runs=runs[1:], fold=fold)
    j = torch.arange(units * unit, device=k.device)
    may = j <= at[:, None]
    place = at[:, None] - j if diagonals else j[None, :]
    shown = (visible(at[:, None], place) | ~may).reshape(len(at), units, unit).all(dim=2) & may[:, ::unit]
    kept = kept_units(scores, candidates, shown, *keep)[:, row].repeat_interleave(unit, dim=2)[:, :, :length]
    if diagonals:
        kept = kept.gather(2, (i[:, None] - j).clamp(min=0).expand_as(kept))
    kept = kept & (j[:length] <= i[:, None])
    broken = (scores.isnan() & candidates).any(dim=2)[:, row]
    return kept.repeat_interleave(together, dim=0), broken.repeat_interleave(together, dim=0)


FORMULAS = (
    pooled_runs,
    asking_rows,
    run_scores,
    row_scores,
    learned_rows,
    indexer_scores,
    unit_scores,
    kept_units,
    chosen_keys,
)
