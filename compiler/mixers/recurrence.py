"""The formula of matrix states, token by token, for every kind that lowers to `Recurrence` (compiler/families.py)."""

from __future__ import annotations

from typing import Any


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
