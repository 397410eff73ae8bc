"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))


def fast_net(w: Any, x: Any, rule: Any, norm: Any) -> Any:
    """What the net of each head makes of x [H, D], [H, E]; its weights are w, name -> [H, outputs, inputs], in order.

    `rule.gated`: down(silu(gate x) * up x); else maps with GELU between them. Then a layer norm with weight and bias `norm`
    [H, E], or none; with `rule.residual` x is added.
    """
    import torch
    import torch.nn.functional as F

    def of(name: str, y: Any) -> Any:
        return torch.einsum("hoi,hi->ho", w[name], y)

    if rule.gated:
        y = of("down", F.silu(of("gate", x)) * of("up", x))
    else:
        y = x
        for at, name in enumerate(w):
            y = of(name, F.gelu(y) if at else y)
    if norm is not None:
        y = F.layer_norm(y, y.shape[-1:], eps=1e-6) * norm[0] + norm[1]
    return x + y if rule.residual else y


def fast_weights(
    q: Any, k: Any, v: Any, rates: Any, start: Any, rule: Any, norm: Any = None, weights: Any = None, moment: Any = None
) -> tuple[Any, Any, Any]:
    """u = gradient of |M(k) - v|^2 at the weights W that the chunk began with; S <- momentum S - lr u; W <- (1 - decay) W + S.

    One sequence of N tokens and H heads from a chunk's beginning on: q, k [N, H, D]; v [N, H, E]; rates lr, momentum, decay
    [N, H]. M is the `fast_net` of W, and `start` what W is at the beginning of a text. `rule` has

    chunk        tokens between which W stands still for gradients
    after_write  a token reads M(q) at W after its own write; else at the weights that its chunk began with
    after_decay  the gradient is taken at the weights that the chunk began with, decayed up to the token
    weight_norm  before a chunk writes, rows of W get the norms that they have in `start`

    weights and moment (S): before the first token, None at a text's beginning. Returns o [N, H, E], weights and moment after
    the last whole chunk.
    """
    import torch

    def loss(w: Any, x: Any, wanted: Any) -> Any:
        return (fast_net(w, x, rule, norm) - wanted).square().sum()

    def rows(w: Any) -> Any:
        return torch.linalg.vector_norm(w, dim=-1, keepdim=True)

    now = start if weights is None else weights
    speed = {name: torch.zeros_like(w) for name, w in now.items()} if moment is None else moment
    outputs, done, seen, begun, kept = [], (now, speed), now, now, 1.0
    for t in range(len(k)):
        lr, momentum, decay = (rate[t][:, None, None] for rate in rates)
        if t % rule.chunk == 0:
            seen = now
            if rule.weight_norm:
                tiny = torch.finfo(k.dtype).tiny
                now = {name: w * (rows(start[name]) / rows(w).clamp(min=tiny)) for name, w in now.items()}
            begun, kept = now, 1.0
        kept = (1 - decay) * kept
        at = {name: kept * w for name, w in begun.items()} if rule.after_decay else begun
        slopes = torch.func.grad(loss)(at, k[t], v[t])
        speed = {name: momentum * speed[name] - lr * slopes[name] for name in start}
        now = {name: (1 - decay) * now[name] + speed[name] for name in start}
        outputs.append(fast_net(now if rule.after_write else seen, q[t], rule, norm))
        if (t + 1) % rule.chunk == 0:
            done = now, speed
    return (torch.stack(outputs) if outputs else v.new_zeros(0, *v.shape[1:])), *done


def window_mask(i: Any, j: Any, *, causal: bool, n: int, aligned: int) -> Any:
    """Query i sees key j: fewer than n/aligned blocks of `aligned` tokens back, and in both directions unless causal."""
    near = (i // aligned - j // aligned).abs() < n // aligned
    return near & (j <= i) if causal else near


# nets.attn:6  window(4)
def visible_0(i: Any, j: Any, length: int) -> Any:
    """window: which keys each query sees, [Nq, Nk]."""
    return window_mask(i, j, causal=True, n=4, aligned=1)
