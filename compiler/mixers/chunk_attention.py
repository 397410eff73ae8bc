"""The formula of summaries whose pool is weighed by queries or runs on, token by token (compiler/mixers/summary.py)."""

from __future__ import annotations

from typing import Any


def chunk_pooled(x: Any, how: str, by: Any, keys: Any, scale: float) -> Any:
    """x [n, G, width] of a chunk -> [G, width]. by: queries [G, D] of pools that weigh, which meet the keys [n, G, D]."""
    import torch

    if how not in by:
        return {"mean": x.mean(0), "sum": x.sum(0), "max": x.amax(0)}[how]
    weights = torch.softmax(scale * torch.einsum("gd,jgd->jg", by[how], keys), dim=0)
    return torch.einsum("jg,jgw->gw", weights, x)


def chunk_queries(query: Any, i: int, sizes: Any, pool: str, asked: Any) -> None:
    """Adds the query [G, D] at position i to what those of each chunk that it is in are pooled to, by slot."""
    import torch

    n, stride = sizes
    slots = -(-n // stride)
    for chunk in range(max(0, (i - n) // stride + 1), i // stride + 1):
        old = asked.get(chunk % slots)
        if chunk * stride == i or old is None:
            asked[chunk % slots] = query
        else:
            asked[chunk % slots] = torch.maximum(old, query) if pool == "max" else old + query


def chunk_read(found: Any, scale: float, cap: float | None, sink: Any) -> Any:
    """One softmax over (query [D], key [C, D], value [C, E]) of several sorts; nothing where there is no key."""
    import torch

    logits = torch.cat([scale * (keys @ query) for query, keys, _ in found])
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    values = torch.cat([values for _, _, values in found])
    if sink is not None:
        logits, values = torch.cat((logits, sink)), torch.cat((values, values.new_zeros(1, values.shape[1])))
    return torch.softmax(logits, dim=0) @ values if len(logits) else values.new_zeros(values.shape[1])


def summary_attention(
    text: Any, rule: Any, done: Any, states: Any, visible: Any, turn: Any, scale: float, cap: float | None
) -> tuple[Any, Any, Any]:
    """Softmax over the tokens that a query sees, and over whole chunks of which it sees none; with pool `recurrence` over whole
    chunks and the own one as it stands.

    `text` is one sequence: q [N, H, D] of the tokens from position `past` on; k [L, G, D] and v [L, G, E] of the keys known one
    by one, at `positions()`; `sink_logit` [H] or None; `more`: of a recurrence the gates [N, G, D] before their sigmoid. rule:
    (tokens of a chunk, from one to the next, pool of keys, of values). done: keys and values [C, G, width] of the chunks
    before; states: `q` [slots, G, D], what queries of unfinished chunks are pooled to, or `k`, `v` [G, width] of a recurrence.
    visible(i, j, length) is the mask and turn(x, positions) the rotation. Returns o, keys and values of all chunks, states.
    """
    import torch

    (n, stride, pool, value_pool), (heads, groups), at = rule, (text.q.shape[1], text.k.shape[1]), text.positions()
    keys, values, recurs = list(done[0]), list(done[1]), pool == "recurrence"
    asked = dict(enumerate(states["q"])) if "q" in states else {}
    h = [states.get(name, x.new_zeros(groups, 1)) for name, x in (("k", text.k), ("v", text.v))]
    rows = []
    for t in range(len(text.q)):
        i, place = text.past + t, len(text.k) - len(text.q) + t
        one = torch.tensor([i], device=at.device)
        query = torch.stack([own.mean(0) for own in text.q[t].chunk(groups)])
        chunk_queries(query, i, (n, stride), pool, asked)
        if recurs:
            g = torch.sigmoid(text.more[0][t])
            h = [g * (0 * h[x] if i % n == 0 else h[x]) + (1 - g) * (text.k, text.v)[x][place] for x in (0, 1)]
        if i + 1 >= n and (i + 1 - n) % stride == 0:
            inside = slice(place + 1 - n, place + 1)
            whole = asked[(i + 1 - n) // stride % -(-n // stride)] / (1 if pool in ("max", "sum") else n)
            by = {"last_query": query, "attention": whole}
            keys.append(h[0] if recurs else chunk_pooled(text.k[inside], pool, by, text.k[inside], scale))
            values.append(h[1] if recurs else chunk_pooled(text.v[inside], value_pool, by, text.k[inside], scale))
        every = visible(one.view(1, 1), torch.arange(i + 1, device=at.device)[None, :], i + 1)[0]
        seen = (at <= i) & every[at.clamp(max=i)]
        far = [c for c in range(len(keys)) if not every[c * stride : c * stride + n].any() and not (recurs and c == i // n)]
        for head in range(heads):
            g = head // (heads // groups)
            own = turn(text.q[t : t + 1], one)[0, head]
            found = [(own, turn(text.k, at)[seen, g], text.v[seen, g])]
            for c in far:
                found.append((own, turn(keys[c][None], one * 0 + c * stride + n - 1)[:, g], values[c][None, g]))
            if recurs:
                found.append((own, turn(h[0][None], one)[:, g], h[1][None, g]))
            rows.append(chunk_read(found, scale, cap, None if text.sink_logit is None else text.sink_logit[head : head + 1]))
    after = {"k": h[0], "v": h[1]} if recurs else {}
    if "attention" in (pool, value_pool):
        slots, stop = -(-n // stride), -(-(text.past + len(text.q)) // stride)
        alive = {c % slots for c in range(len(keys), stop)}
        after["q"] = torch.stack([asked[slot] if slot in alive else torch.zeros_like(text.k[0]) for slot in range(slots)])
    chunks = [torch.stack(one) if one else x[:0] for one, x in ((keys, text.k), (values, text.v))]
    return torch.stack(rows).reshape(len(text.q), heads, -1), chunks, after
