"""The oracle's summaries: one key and value for each complete chunk, from docs/language.md and NSA's formula."""

from __future__ import annotations

import torch
from formulas import rotated, sees


def chunk_rows(kind, pool: str, weights, name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """What stands for each complete chunk of x [L, width]."""
    found = []
    for begin in range(0, len(x) - kind.n + 1, kind.stride):
        rows = x[begin : begin + kind.n]
        if pool == "mlp":
            wide = torch.cat([row + place for row, place in zip(rows, weights[f"{name}.place"], strict=True)])
            inner = weights[f"{name}.up.weight"] @ wide
            found.append(weights[f"{name}.down.weight"] @ (inner / (1 + torch.exp(-inner))))
        else:
            found.append({"mean": rows.mean(0), "sum": rows.sum(0), "max": rows.amax(0)}[pool])
    return found


def chunk_keys(kind, a, weights, at: str, k: torch.Tensor) -> list[torch.Tensor]:
    """Keys of the chunks of k [L, D], as before they were turned; each turned at its chunk's last position."""
    rows = chunk_rows(kind, kind.pool, weights, f"{at}.summary.k", k)
    lasts = [m * kind.stride + kind.n - 1 for m in range(len(rows))]
    if a.rope is None:
        return rows
    return [rotated(row[None], torch.tensor([last]), a)[0] for row, last in zip(rows, lasts, strict=True)]


def chunk_values(kind, weights, at: str, v: torch.Tensor) -> list[torch.Tensor]:
    return chunk_rows(kind, kind.value_pool, weights, f"{at}.summary.v", v)


def sees_chunk(kind, others, i: int, m: int, length: int) -> bool:
    """Whether query i sees chunk m: it has read all of it, and the rest of the union shows none of its tokens."""
    tokens = range(m * kind.stride, m * kind.stride + kind.n)
    return tokens[-1] <= i and not any(sees(other, i, j, length, True) for other in others for j in tokens)
