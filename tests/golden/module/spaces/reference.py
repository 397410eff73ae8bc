"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))


def channel_states(u: Any, step: Any, rates: Any, write: Any, read: Any, weights: Any, state: Any = None) -> tuple[Any, Any]:
    """A state of M numbers for every channel c of one sequence, token by token:

        h[c, m] <- exp(step[c] rates[c, m]) h[c, m] + write[m] u[c]
        y[c] = Re(sum over m of weights[c, m] read[m] h[c, m])

    u, step [N, channels]; rates, weights [channels, M], real or complex; write, read [N, M]; step, write, read and weights may
    be None: 1. `state` [channels, M], zeros at the start. Returns y [N, channels] and the new state.
    """
    import torch

    h = rates.new_zeros(rates.shape) if state is None else state
    outputs = []
    for t in range(u.shape[0]):
        decay = torch.exp(rates if step is None else step[t].unsqueeze(1) * rates)
        added = u[t].unsqueeze(1)
        h = decay * h + (added if write is None else write[t] * added)
        seen = h if read is None else read[t] * h
        outputs.append((seen if weights is None else weights * seen).sum(dim=1))
    y = torch.stack(outputs) if outputs else u.new_zeros(u.shape)
    return (y.real if y.is_complex() else y), h


def recurrence(
    q: Any,
    k: Any,
    v: Any,
    decay: Any = None,
    erase: Any = None,
    write: Any = None,
    scale: float = 1.0,
    normalize: bool = False,
    state: Any = None,
    total: Any = None,
) -> tuple[Any, Any, Any]:
    """S <- exp(decay) S; S <- S + k (write v - S^T (erase k))^T, or S + k v^T; o = scale S^T q, or S^T q / (z . q).

    One sequence of N tokens and H heads: q, k [N, H, K]; v [N, H, V]; decay, none above 0: [N, H, K] by row of S, [N, H], [H],
    or None; erase [N, H, K] or [N, H] and write [N, H, V] or [N, H]: the delta rule; without them S + k v^T.
    `normalize`: z is the sum of keys, decayed as S is; where z . q is 0, so is o. Before the first token: state [H, K, V] and
    z, total [H, K], zeros where None. Returns o [N, H, V], the state and z after the last token (z None without `normalize`).
    """
    import torch

    def of_rows(x: Any, width: int) -> Any:
        """[H] or [H, width] -> [H, width]."""
        return x if x.dim() == 2 else x.unsqueeze(-1).expand(-1, width)

    tokens, heads, width = k.shape
    if state is None:
        state = v.new_zeros(heads, width, v.shape[2])
    if total is None and normalize:
        total = v.new_zeros(heads, width)
    outputs = []
    for t in range(tokens):
        if decay is not None:
            kept = torch.exp(of_rows(decay if decay.dim() == 1 else decay[t], width))
            state = kept.unsqueeze(-1) * state
            total = kept * total if normalize else None
        new = v[t]
        if erase is not None:
            held = torch.einsum("hkv,hk->hv", state, of_rows(erase[t], width) * k[t])
            new = of_rows(write[t], v.shape[2]) * v[t] - held
        state = state + torch.einsum("hk,hv->hkv", k[t], new)
        o = torch.einsum("hkv,hk->hv", state, q[t])
        if normalize:
            total = total + k[t]
            mass = torch.einsum("hk,hk->h", total, q[t]).unsqueeze(-1)
            o = torch.where(mass == 0, 0.0, o / torch.where(mass == 0, 1.0, mass))
        else:
            o = scale * o
        outputs.append(o)
    return (torch.stack(outputs) if outputs else v.new_zeros(0, *v.shape[1:])), state, total
