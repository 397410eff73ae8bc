"""The oracle of kinds that plain PyTorch runs: from docs/language.md and the papers named there, with whole matrices.

No state is carried from call to call: what tokens brought lies whole in call.text, and all is computed anew.
Legend: n new tokens, L all so far; W model width.
"""

from __future__ import annotations

import math

import torch
from formulas import block, mask, rms, rotated, silu
from memory_formulas import memory, net, weights_after


def recurrent(call, mixer, at, x):
    """x [n, W] -> h of every token, times gate and scale."""
    w = {name: call.weights[f"{at}.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    text, width = call.text.joined(f"{at}.x", x), x.shape[1]
    h = c = x.new_zeros(width)
    outputs = []
    for token in text:
        ours, old = w["weight_ih"] @ token + w["bias_ih"], w["weight_hh"] @ h + w["bias_hh"]
        part = [slice(gate * width, (gate + 1) * width) for gate in range(4)]
        if mixer.kind.cell == "lstm":
            both = ours + old
            c = squash(both[part[1]]) * c + squash(both[part[0]]) * torch.tanh(both[part[2]])
            h = squash(both[part[3]]) * torch.tanh(c)
        else:
            reset, keep = (squash(ours[part[gate]] + old[part[gate]]) for gate in (0, 1))
            h = keep * h + (1 - keep) * torch.tanh(ours[part[2]] + reset * old[part[2]])
        outputs.append(h)
    return finished(call, mixer, at, torch.stack(outputs)[-len(x) :])


def squash(x):
    return 1 / (1 + torch.exp(-x))


def feedback(call, mixer, at, x):
    """s = (I - diag(gain) A)^-1 f with the whole matrix of all tokens so far."""
    kind, n = mixer.kind, len(x)
    f, q, k = (
        call.text.joined(f"{at}.{name}", y)
        for name, y in (("f", x), ("q", call.linear(f"{at}.q_proj", x)), ("k", call.linear(f"{at}.k_proj", x)))
    )
    gain = torch.full((len(f), kind.heads), float(kind.gain), dtype=f.dtype) if kind.gain != "learned" else None
    if gain is None:
        gain = 0.999 * torch.tanh(call.linear(f"{at}.gain", f))
    length, width = f.shape
    each = width // kind.heads
    solved = []
    for h in range(kind.heads):
        own = slice(h * each, (h + 1) * each)
        a = torch.zeros(length, length, dtype=f.dtype)
        for t in range(1, length):
            a[t, :t] = torch.softmax(k[:t, own] @ q[t, own] / math.sqrt(each), dim=0)
        matrix = torch.eye(length, dtype=f.dtype) - gain[:, h : h + 1] * a
        solved.append(torch.linalg.inv(matrix.double()).to(f.dtype) @ f[:, own])
    return finished(call, mixer, at, torch.cat(solved, dim=1)[-n:], "o_proj")


def finished(call, mixer, at, y, out=""):
    """Times the output gate, through the output's map, times the scale."""
    a = mixer.attributes
    if a.output_gate:
        gate = call.linear(f"{at}.output_gate", call.given)
        y = y * {"sigmoid": squash, "silu": lambda z: z * squash(z), "linear": lambda z: z}[a.output_gate](gate)
    y = call.linear(f"{at}.{out}", y) if out else y
    return y * (call.weights[f"{at}.scale"] if not isinstance(a.scale, int | float) else a.scale)


FORMULAS = {"recurrent": recurrent, "feedback": feedback}


def context(call, mixer, at, x):
    """Titans' memory as context, segment by segment: what the memory has learned is found anew for each from all outputs."""
    a, m, name = mixer.attributes, mixer.memory, f"{at}.{mixer.name}"
    text, anew = call.text.joined(f"{at}.x", x), []
    length, size = len(text), mixer.segment

    def fresh(given):
        one = type(call)(call.spec, call.weights, type(call.text)(), call.step, 0, call.dtype)
        one.given = given
        return one

    q = fresh(text).heads(at, "q", text, a.heads, a.head_dim, a)
    asked = fresh(text).heads(name, "q", call.activated(m, text), m.attributes.heads, m.attributes.head_dim, m.attributes)
    if m.attributes.rope is not None:
        asked = torch.stack([rotated(asked[:, h], torch.arange(length), m.attributes) for h in range(asked.shape[1])], dim=1)
    for begin in range(0, length, size):
        here = slice(begin, min(begin + size, length))
        known = weights_after(fresh(text), m, name, call.activated(m, torch.cat(anew) if anew else text[:0]))
        h = torch.stack(
            [net(m.kind, *own, asked[t, g])[0] for t in range(*here.indices(length)) for g, own in enumerate(known)]
        )
        h = fresh(text[here]).output(name, m.attributes, h.reshape(-1, m.attributes.heads, m.attributes.value_dim), text[here])
        both = torch.cat((h, text[here]))
        k, v = (
            fresh(both).heads(at, one, both, a.kv_heads, width, a) for one, width in (("k", a.head_dim), ("v", a.value_dim))
        )
        outputs = [segment_head(call, mixer, at, n, q[here, n], k, v, begin) for n in range(a.heads)]
        anew.append(fresh(text[here]).output(at, a, torch.stack(outputs, dim=1), text[here]))
    y = torch.cat(anew)
    product = torch.ones_like(y)
    for part, one in (("attention", y), (mixer.name, memory(fresh(y), m, name, call.activated(m, y)))):
        product = product * rms(one, call.weights[f"{at}.gate.{part}_norm.weight"], call.spec.model.norm.epsilon)
    return product[-len(x) :]


def segment_head(call, mixer, at, head, q, k, v, begin):
    """One head of a segment: each query sees learned keys, and of both halves of k and v the tokens up to its own."""
    a, n = mixer.attributes, len(q)
    g, outputs = head * a.kv_heads // a.heads, []
    places = torch.arange(begin, begin + n)
    turned = q if a.rope is None else rotated(q, places, a)
    keys = k[:, g] if a.rope is None else torch.cat([rotated(half, places, a) for half in k[:, g].chunk(2)])
    for t in range(n):
        seen = [*range(t + 1), *range(n, n + t + 1)]
        own_k, own_v = keys[seen], v[seen, g]
        if mixer.persistent:
            own_k = torch.cat((call.weights[f"{at}.persistent_key"][:, g], own_k))
            own_v = torch.cat((call.weights[f"{at}.persistent_value"][:, g], own_v))
        logits = call.scaled((turned[t] @ own_k.T)[None], a)[0]
        if a.sink_logit:
            logits, own_v = (
                torch.cat((logits, call.weights[f"{at}.sink_logit"][head : head + 1])),
                torch.cat((own_v, 0 * own_v[:1])),
            )
        outputs.append(torch.softmax(logits, dim=0) @ own_v)
    return torch.stack(outputs)


def smoothed(call, at, x, states):
    """Mega's moving average, token by token from the text's beginning."""
    delta, alpha, beta, gamma = (call.weights[f"{at}.{name}"] for name in ("delta", "alpha", "beta", "gamma"))
    p, h, rows = squash(delta), torch.zeros_like(delta), []
    for token in call.text.joined(f"{at}.x", x):
        h = (1 - p * squash(alpha)) * h + p * beta * token[:, None]
        rows.append(silu((gamma * h).sum(1) / math.sqrt(states) + call.weights[f"{at}.omega"] * token))
    return torch.stack(rows)[-len(x) :]


def stands(kind):
    """Whether a key set stands for keys that the rest of the union does not show, by formulas of this file."""
    return kind.kind == "codebook" or {getattr(kind, "pool", ""), getattr(kind, "value_pool", "")} & APART


APART = {"last_query", "attention", "recurrence"}


def condensed(call, leaf, at, g, q, k, v, sink):
    """One head over keys that the union shows, and over what stands for the others: q [n, D], k [L, D] and v [L, E]."""
    a, n = leaf.attributes, len(q)
    (kind,) = (kind for kind in leaf.keys if stands(kind))
    rest = tuple(key for key in leaf.keys if key is not kind)
    seen = mask(rest, call.past, n, call.step.length, a.causal) if rest else torch.zeros(n, len(k), dtype=torch.bool)
    logits, values = {"codebook": quantised, "summary": summarised}[kind.kind](call, leaf, kind, at, g, q, k, v, seen)
    if sink is not None:
        logits = torch.cat((logits, sink.expand(n, 1)), dim=1)
        values = torch.cat((values, torch.zeros_like(values[:, :1])), dim=1)
    empty = (logits == -math.inf).all(dim=1, keepdim=True)
    weights = torch.where(empty, 0.0, torch.softmax(logits, dim=1))
    return (weights[:, :, None] * values).sum(1)


def quantised(call, leaf, kind, at, g, q, k, v, seen):
    """Softmax over all keys, of which those that are not shown are the nearest codes: logits [n, L] and values [n, L, E]."""
    a, codes = leaf.attributes, call.weights[f"{at}.codebook"][g]
    near = ((k[:, None] - codes) ** 2).sum(-1).argmin(1)
    exact = call.scaled(call.products(leaf, q, k, seen)[1], a)
    logits = torch.where(seen, exact, call.scaled(q @ codes[near].T, a))
    later = torch.arange(len(k)) > torch.arange(call.past, call.past + len(q))[:, None]
    return logits.masked_fill(later, -math.inf), v.expand(len(q), *v.shape)


def summarised(call, leaf, kind, at, g, q, k, v, seen):
    """Tokens that are shown, then chunks: logits [n, L + chunks (+ 1)] and values; a recurrence also reads its own chunk."""
    a, n = leaf.attributes, len(q)
    turned, products = call.products(leaf, q, k, seen)
    each = block(leaf.keys) if a.positions == "chunk" else 1
    begins = range(0, len(k) - kind.n + 1, kind.stride)
    ratio = a.heads // a.kv_heads
    asked = call.text.rows[f"{at}.q"][:, g * ratio : (g + 1) * ratio].mean(1)
    if kind.pool == "recurrence":
        gate = squash(call.linear(f"{at}.summary_gate", call.text.rows[f"{at}.in"]))
        gate = gate[:, g * a.head_dim : (g + 1) * a.head_dim]
        keys, values = (ran_on(x, gate, kind.n) for x in (k, v))
        pairs = [(keys[begin + kind.n - 1], values[begin + kind.n - 1]) for begin in begins]
    else:
        scale = call.spec.model.score_scale or a.head_dim**-0.5
        scale /= a.temperature
        pairs = []
        for chunk in (slice(begin, begin + kind.n) for begin in begins):
            rows = ((k[chunk], kind.pool), (v[chunk], kind.value_pool))
            pairs.append([pooled(kind, how, x, k[chunk], asked[chunk], scale) for x, how in rows])
    logits, read = [call.scaled(products, a).masked_fill(~seen, -math.inf)], [v.expand(n, *v.shape)]
    for begin, (key, value) in zip(begins, pairs, strict=True):
        last = begin + kind.n - 1
        spun = key if a.rope is None else rotated(key[None], torch.tensor([last // each]), a)[0]
        i = torch.arange(call.past, call.past + n)
        whole = (last < i // kind.n * kind.n if kind.pool == "recurrence" else last <= i) & ~seen[:, begin : last + 1].any(1)
        logits.append(call.scaled((turned @ spun)[:, None], a).masked_fill(~whole[:, None], -math.inf))
        read.append(value.expand(n, 1, -1))
    if kind.pool == "recurrence":
        places = torch.arange(call.past, call.past + n)
        own = keys[call.past :] if a.rope is None else rotated(keys[call.past :], places // each, a)
        logits.append(call.scaled((turned * own).sum(1, keepdim=True), a))
        read.append(values[call.past :, None])
    return torch.cat(logits, dim=1), torch.cat(read, dim=1)


def ran_on(x, gate, n):
    """h <- g h + (1 - g) x, anew with each n tokens."""
    rows, h = [], torch.zeros_like(x[0])
    for t in range(len(x)):
        h = gate[t] * (h if t % n else 0 * h) + (1 - gate[t]) * x[t]
        rows.append(h)
    return torch.stack(rows)


def pooled(kind, how, x, k, q, scale):
    """One number a channel for a chunk x [tokens, width], whose keys and mean queries are k and q."""
    if how in ("last_query", "attention"):
        way = kind.pool if kind.pool in ("max", "sum") else "mean"
        query = q[-1] if how == "last_query" else {"max": q.amax(0), "sum": q.sum(0), "mean": q.mean(0)}[way]
        return torch.softmax(scale * (k @ query), dim=0) @ x
    return {"max": x.amax(0), "sum": x.sum(0), "mean": x.mean(0)}[how]
