"""The oracle of `memory`: head by head, with gradients written out, from docs/language.md and the papers named there.

No state is ever carried from call to call: what tokens brought lies whole in call.text, and all weights are found anew.
Legend: n new tokens, L all so far; H heads; D key width, E value width.
"""

from __future__ import annotations

import math

import torch
from formulas import rotated, silu


def memory(call, mixer, at, x):
    """x [n, W] -> [n, W]."""
    a = mixer.attributes
    o = torch.stack([head(mixer.kind, *given)[0] for given in heads_of(call, mixer, at, x)], dim=1)
    return call.output(at, a, o[-len(x) :], x)


def weights_after(call, mixer, at, x):
    """What each head has learned of x, whole chunks: (its weights, its norm)."""
    found = heads_of(call, mixer, at, x) if len(x) else heads_of(call, mixer, at, x.new_zeros(1, x.shape[1]))
    return [(head(mixer.kind, *given)[1] if len(x) else given[0], given[1]) for given in found]


def heads_of(call, mixer, at, x):
    """What `head` is given of each head, over all tokens so far."""
    kind, a = mixer.kind, mixer.attributes
    heads = {"q": (a.heads, a.head_dim), "k": (a.kv_heads, a.head_dim), "v": (a.kv_heads, a.value_dim)}
    q, k, v = (call.heads(at, name, x, *sizes, a) for name, sizes in heads.items())
    if a.rope is not None:
        places = torch.arange(call.past, call.past + len(x))
        q, k = (torch.stack([rotated(y[:, h], places, a) for h in range(y.shape[1])], dim=1) for y in (q, k))
    q, k, v = (call.text.joined(f"{at}.{name}", y) for name, y in zip("qkv", (q, k, v), strict=True))
    gates = [call.text.joined(f"{at}.{name}", gate(call, kind, a, at, name, x)) for name in ("lr", "momentum", "decay")]
    names = ["gate", "up", "down"] if getattr(kind.net, "word", "") == "swiglu" else []
    names = names or sorted(name.rpartition(".")[2] for name in call.weights if name.startswith(f"{at}.net.map_"))
    for h in range(a.heads):
        g = h * a.kv_heads // a.heads
        w = [call.weights[f"{at}.net.{name}"][h] for name in names]
        norm = [call.weights[f"{at}.net_norm.{part}"][h] for part in ("weight", "bias")] if kind.norm else None
        yield w, norm, q[:, h], k[:, g], v[:, g], [rate[:, h] for rate in gates]


def gate(call, kind, a, at, name, x):
    """[n, H]: a rate of every token."""
    given = getattr(kind, name)
    if given is None:
        given = 1.0 if name == "lr" else 0.0
    if isinstance(given, int | float):
        return x.new_full((len(x), a.heads), float(given))
    if given.per == "head":
        return torch.sigmoid(call.weights[f"{at}.{name}"]).expand(len(x), -1)
    return torch.sigmoid(x @ call.weights[f"{at}.{name}_proj.weight"].T + call.weights[f"{at}.{name}_proj.bias"])


def head(kind, start, norm, q, k, v, gates):
    """One head's outputs [L, E], and its weights after the last token; `start`: those that the text begins with."""
    lr, momentum, decay = gates
    w, s = start, [torch.zeros_like(one) for one in start]
    outputs, begun, seen, kept = [], w, w, 1
    for t in range(len(k)):
        if t % kind.chunk == 0:
            seen = w
            if kind.weight_norm == "row":
                w = [one / norms(one) * norms(first) for one, first in zip(w, start, strict=True)]
            begun, kept = w, 1
        kept = kept * (1 - decay[t])
        at = [kept * one for one in begun] if kind.error == "after_decay" else begun
        u = gradients(kind, at, norm, k[t], v[t])
        s = [momentum[t] * old - lr[t] * new for old, new in zip(s, u, strict=True)]
        w = [(1 - decay[t]) * old + new for old, new in zip(w, s, strict=True)]
        outputs.append(net(kind, w if kind.read == "after_write" else seen, norm, q[t])[0])
    return torch.stack(outputs), w


def norms(w):
    return w.square().sum(1, keepdim=True).sqrt()


def net(kind, w, norm, x):
    """(M(x), what its gradient needs)."""
    if len(w) == 3 and getattr(kind.net, "word", "") == "swiglu":
        inside = [w[0] @ x, w[1] @ x]
        y = w[2] @ (silu(inside[0]) * inside[1])
    else:
        inside, y = [], x
        for at, one in enumerate(w):
            inside.append(gelu(y)[0] if at else y)
            inside.append(y := one @ inside[-1])
    raw = y
    if norm is not None:
        y = (raw - raw.mean()) / (raw.var(correction=0) + 1e-6).sqrt() * norm[0] + norm[1]
    return (x + y if kind.residual else y), (inside, raw)


def gradients(kind, w, norm, x, wanted):
    """d |M(x) - wanted|^2 / dw, by the chain rule."""
    y, (inside, raw) = net(kind, w, norm, x)
    d = 2 * (y - wanted)
    if norm is not None:
        size, rstd = len(raw), (raw.var(correction=0) + 1e-6) ** -0.5
        hat, g = (raw - raw.mean()) * rstd, d * norm[0]
        d = (size * g - g.sum() - hat * (g * hat).sum()) * rstd / size
    if len(w) == 3 and getattr(kind.net, "word", "") == "swiglu":
        first, second = inside
        squashed = 1 / (1 + torch.exp(-first))
        hidden = w[2].T @ d
        slope = squashed * (1 + first * (1 - squashed))
        return [
            torch.outer(hidden * second * slope, x),
            torch.outer(hidden * first * squashed, x),
            torch.outer(d, first * squashed * second),
        ]
    found = []
    for at in reversed(range(len(w))):
        found.insert(0, torch.outer(d, inside[2 * at]))
        if at:
            d = (w[at].T @ d) * gelu(inside[2 * at - 1])[1]
    return found


def gelu(x):
    """(x Phi(x), its derivative), Phi the normal distribution."""
    below = (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * below, below + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
