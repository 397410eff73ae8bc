"""The oracle's choices in a model: whose queries and keys score, and which decode steps choose anew, from docs/language.md.

Legend: n queries of a call, L tokens so far; H query heads; J heads of an indexer; D key width.
"""

from __future__ import annotations

import math

import torch
from chosen import Asking, chooses_at, chosen
from formulas import layer_norm, rotated


def content(call, leaf, owner_of, at, h, q, k, x):
    """bool [n, L], what content adds to the keys of head h; q [L, H, D], k [L, G, D], x [n, W]. None where nothing chooses."""
    kinds = [kind for kind in leaf.keys if kind.kind == "routed"]
    if not kinds:
        return None
    a, n = leaf.attributes, len(q) - call.past
    seen = torch.zeros(n, len(k), dtype=torch.bool)
    rest = tuple(kind for kind in leaf.keys if kind.kind not in ("routed", "persistent"))
    for kind in kinds:
        own, asked, keys, turning = kind, q, k, a
        if kind.from_:
            own, asked, keys, turning = _lent(call, kind)
        net = _indexed(call, a, own, at, x) if getattr(own.keys, "word", "") == "indexer" else None
        asking = _asking(call, turning, kind, h, asked, keys, lambda o: owner_of(o) is leaf)
        for t in range(n):
            i = call.past + t
            last = chooses_at(own, i, len(q), call.step.phase == "decode")
            ask = Asking(*asking, i, last, call.step.length, *_logit(call, a))
            ask.net = net
            if getattr(own.keys, "word", "") == "learned":
                ask.maps = _maps(call, a, kind, at, h, asked, keys)

            if getattr(own.keys, "kind", "") == "summary":
                ask.chunks = _chunks(call, a, kind, h, own.keys)

            def now(ask=ask, own=own):
                return torch.tensor(chosen(own, ask, rest))

            seen[t] |= _held(call, kind, at, h, i, q, a, now) if kind.refresh != "always" else now()
            if _sees_all(kind, i, call.step.length):
                seen[t, : i + 1] = True
    return seen


def _logit(call, a):
    return (call.spec.model.score_scale or 1 / math.sqrt(a.head_dim)) / a.temperature, call.spec.model.score_cap


def _asking(call, a, kind, h, q, k, mine):
    """q [heads, L, D] and k [heads, L, D] of those who share the choice of head h, turned by their positions."""
    ratio, per = a.heads // a.kv_heads, getattr(kind.per, "word", "head")
    first, last = {"head": (h, h + 1), "group": (h // ratio * ratio, (h // ratio + 1) * ratio)}.get(per, (0, a.heads))
    heads = [o for o in range(first, last) if mine(o)]
    return torch.stack([call.turned(a, q[:, o]) for o in heads]), torch.stack([call.turned(a, k[:, o // ratio]) for o in heads])


def _maps(call, a, kind, at, h, q, k):
    """What SeerAttention's gate is made of, for the heads that share the choice of head h."""
    ratio, per = a.heads // a.kv_heads, getattr(kind.per, "word", "head")
    first, last = {"head": (h, h + 1), "group": (h // ratio * ratio, (h // ratio + 1) * ratio)}.get(per, (0, a.heads))
    maps = [call.weights[f"{at}.selector.{letter}_proj.weight"] for letter in "qk"]
    queries = torch.stack([q[:, o] for o in range(first, last)])
    keys, q_maps, k_maps = (torch.stack([x[o // ratio] for o in range(first, last)]) for x in (k.transpose(0, 1), *maps))
    return queries, keys, q_maps, k_maps, lambda x, places: x if a.rope is None else rotated(x, places, a)


def _chunks(call, a, kind, h, summary):
    """The keys of a branch's chunks, for the heads that share the choice of head h."""
    ratio, per = a.heads // a.kv_heads, getattr(kind.per, "word", "head")
    first, last = {"head": (h, h + 1), "group": (h // ratio * ratio, (h // ratio + 1) * ratio)}.get(per, (0, a.heads))
    return [call.summaries[summary][o // ratio] for o in range(first, last)]


def _lent(call, kind):
    """(how the nearest earlier layer that makes a choice scores, with the amount of `kind`; its q, k and attributes)."""
    lender, q, k, attributes = call.lent
    if lender is None:
        values = {"keys": "own", "score": _Softmax(), "fold": "sum", "queries": "each"}
    else:
        values = {key: getattr(lender, key) for key in ("keys", "score", "fold", "queries")}
    return _Said({**vars(kind), **values}), q, k, attributes


class _Said:
    """A choice read as data."""

    def __init__(self, values):
        self.__dict__.update(values)


class _Softmax:
    word, lse = "softmax", None


def _indexed(call, a, kind, at, x):
    """DeepSeek-V3.2: queries [L, J, D], one key [L, D] a token behind a layer norm, weights [L, J], of all tokens so far."""
    at, heads, width = f"{at}.indexer", kind.keys.heads, kind.keys.head_dim
    rows = call.text.joined(f"{at}.x", x) if f"{at}.x" not in call.seen_inputs else call.text.rows[f"{at}.x"]
    call.seen_inputs.add(f"{at}.x")
    q = call.linear(f"{at}.q_proj", rows).reshape(len(rows), heads, width)
    norm = call.weights[f"{at}.k_norm.weight"], call.weights[f"{at}.k_norm.bias"]
    k = layer_norm(call.linear(f"{at}.k_proj", rows), *norm, 1e-6)
    weights = call.linear(f"{at}.weight_proj", rows) / math.sqrt(heads * width)
    if a.rope is not None:
        places, turn = torch.arange(len(rows)), _Rotation(a, min(a.rope_dim, width) // 2 * 2)
        q = torch.stack([rotated(q[:, j], places, turn) for j in range(heads)], dim=1)
        k = rotated(k, places, turn)
    return q, k, weights


class _Rotation:
    """The attributes' rotation, of so many channels."""

    def __init__(self, a, dim):
        self.rope, self.rope_scale, self.rope_dim = a.rope, a.rope_scale, dim


def _held(call, kind, at, h, i, q, a, now):
    """A choice that decoding keeps: (bool [L]) what it was when it was made, and every token since."""
    if call.step.phase != "decode":
        return now()
    steps = call.text.choices.setdefault((at, id(kind)), [])
    if not steps or steps[-1][0] < i:  # the first head to come by
        steps.append((i, _fires(kind, steps, i, q, call, a), {}))
    _, anew, made = steps[-1] if steps[-1][0] == i else next(step for step in steps if step[0] == i)
    before = [step for step in steps if step[0] <= i and step[1]][-1]
    if anew:
        made[h] = now()
    seen = torch.zeros(len(q), dtype=torch.bool)
    seen[: len(before[2][h])] = before[2][h][: len(q)]
    seen[before[0] + 1 : i + 1] = True
    if anew and kind.on_refresh == "dense":
        seen[: i + 1] = True
    return seen


def _fires(kind, steps, i, q, call, a):
    """Whether the query at position i chooses anew; q [L, H, D]."""
    made = [step[0] for step in steps if step[1]]
    if not made or kind.refresh == "once":
        return not made
    since = i - made[-1]
    now, then = (torch.cat([call.turned(a, q[: p + 1, h])[p] for h in range(a.heads)]) for p in (i, made[-1]))
    cosine = float(now @ then / (now.norm() * then.norm()))
    rules = kind.refresh if isinstance(kind.refresh, tuple) else (kind.refresh,)
    return any(since >= one.n if one.word == "every" else since % one.every == 0 and cosine < one.x for one in rules)


def _sees_all(kind, i, length):
    """Whether the query at position i is one of `dense_queries`."""
    if kind.dense_queries is None:
        return False
    return i < kind.dense_queries.n if kind.dense_queries.word == "first" else i >= length - kind.dense_queries.n
