"""Attention inside a feedback path (Sessa, arXiv 2604.18580): s = f + gain A s, a triangular solve, block by block.

Legend: T new tokens of S sequences; H matrices A, each for D channels; B sequences and matrices of one run; n new tokens of
each, L all of them; C tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .autocast import enabled, off
from .batch import Batch
from .call import Call
from .plain import PlainLaunch, check_cache
from .storage import LayerCache

BLOCK = 64
"""Tokens that are solved for together."""

GAIN = 0.999
"""What a learned gain stays below: then no s grows beyond 1000 times the largest f."""

Formula = Callable[..., Tensor]
"""A reference: f, q, k [N, H, D] and gain [N, H] of one sequence, earlier k and s -> s [N, H, D]."""


class Feedback(PlainLaunch):
    """f [T, H D] -> s [T, H D]. In fp32, in float64 where f is; decoding keeps k and s of every token.

    gain  a number for all tokens, or None: then a map of each token is given
    """

    def __init__(self, name: str, *, heads: int, gain: float | None, formula: Formula) -> None:
        super().__init__(name, {"torch": solve, "reference": formula})
        self.heads, self.gain = heads, gain

    def __call__(self, f: Tensor, call: Call, slot: int, q: Tensor, k: Tensor, gain: Tensor | None = None) -> Tensor:
        """q, k [T, H D]; gain [T, H] before its tanh."""
        batch, cache, run = call.batch, call.slot(slot), self.providers[call.batch.phase]
        if not batch.tokens:
            return f
        if cache is not None:
            check_cache(cache, {}, (self.heads, f.shape[1] // self.heads, f.shape[1] // self.heads))
        wide = torch.promote_types(f.dtype, torch.float32)
        f_, q_, k_ = (x.to(wide).view(len(x), self.heads, -1) for x in (f, q, k))  # [T, H, D]
        g = f_.new_full(f_.shape[:2], self.gain or 0.0) if gain is None else GAIN * torch.tanh(gain.to(wide))
        k_ = k_ if cache is None else k_.to(cache.k.dtype).to(wide)  # what later calls will read
        with off(f) if enabled(f) else nullcontext():
            s = _in_runs(f_, q_, k_, g, batch, cache) if run is solve else _each(run, f_, q_, k_, g, batch, cache)
        if cache is not None:
            cache.write(k_, s, batch)
        return s.flatten(1).to(f.dtype)


def _in_runs(f: Tensor, q: Tensor, k: Tensor, g: Tensor, batch: Batch, cache: LayerCache | None) -> Tensor:
    """Sequences alike together, others one after another."""
    if batch.even:
        count = batch.sequences

        def rows(x: Tensor) -> Tensor:
            return x.view(count, -1, *x.shape[1:]).transpose(1, 2).flatten(0, 1)  # [T, H, ...] -> [S H, n, ...]

        kept = () if cache is None or not batch.max_past else cache.filled(batch, batch.max_past)
        s = solve(rows(f), rows(q), rows(k), rows(g), *(x.flatten(0, 1) for x in kept))
        return s.view(count, f.shape[1], *s.shape[1:]).transpose(1, 2).flatten(0, 1)
    return _each(_one, f, q, k, g, batch, cache)


def _one(f: Tensor, q: Tensor, k: Tensor, g: Tensor, *past: Tensor | None) -> Tensor:
    """One sequence, [N, H, ...]."""
    turned = (None if x is None else x.transpose(0, 1) for x in (f, q, k, g, *past))
    return solve(*turned).transpose(0, 1)  # type: ignore[arg-type]


def _each(run: Formula, f: Tensor, q: Tensor, k: Tensor, g: Tensor, batch: Batch, cache: LayerCache | None) -> Tensor:
    outputs = []
    kept = None if cache is None or not batch.max_past else cache.filled(batch, batch.max_past)
    for s, own in enumerate(zip(*(torch.split(x, list(batch.sizes)) for x in (f, q, k, g)), strict=True)):
        past: tuple[Any, ...] = (None, None)
        if kept is not None and batch.pasts[s]:
            past = tuple(x[s, :, : batch.pasts[s]].transpose(0, 1).to(f.dtype) for x in kept)
        outputs.append(run(*own, *past))
    return torch.cat(outputs)


def solve(f: Tensor, q: Tensor, k: Tensor, gain: Tensor, past_k: Tensor | None = None, past_s: Tensor | None = None) -> Tensor:
    """s [B, n, D] of f, q, k [B, n, D] and gain [B, n]; past_k, past_s [B, P, D]: those of earlier calls, without gradients."""
    if past_k is None or past_s is None:
        out: Tensor = _Solve.apply(f, q, k, gain)  # type: ignore[no-untyped-call]
        return out
    with torch.no_grad():
        return _forward(f, q, torch.cat((past_k.to(f.dtype), k), 1), gain, past_s.to(f.dtype))


def _weights(q: Tensor, k: Tensor, begin: int, past: int) -> Tensor:
    """Rows of A [B, C, L'] of the queries from new token `begin` on, over the keys k [B, L', D] up to the last query's own."""
    at = past + begin + torch.arange(q.shape[1], device=q.device)
    earlier = torch.arange(k.shape[1], device=q.device) < at.unsqueeze(1)
    logits = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).masked_fill(~earlier, -torch.inf)
    most = logits.amax(-1, keepdim=True)
    masses = torch.exp(logits - torch.where(most == -torch.inf, 0.0, most))
    return masses / masses.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)


def _blocks(tokens: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + BLOCK, tokens)) for begin in range(0, tokens, BLOCK)]


def _lower(inner: Tensor, gain: Tensor) -> Tensor:
    """I - gain A of a block, unit lower triangular."""
    return torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device) - gain.unsqueeze(-1) * inner


def _forward(f: Tensor, q: Tensor, k: Tensor, gain: Tensor, past_s: Tensor | None) -> Tensor:
    """Forward substitution: what earlier blocks give is a product, what is left is a small solve."""
    past = 0 if past_s is None else past_s.shape[1]
    s = f.new_empty(f.shape[0], past + f.shape[1], f.shape[2])
    if past_s is not None:
        s[:, :past] = past_s
    for begin, end in _blocks(f.shape[1]):
        a, g, before = _weights(q[:, begin:end], k[:, : past + end], begin, past), gain[:, begin:end], past + begin
        right = f[:, begin:end] + g.unsqueeze(-1) * (a[:, :, :before] @ s[:, :before])
        s[:, before : past + end] = torch.linalg.solve_triangular(
            _lower(a[:, :, before:], g), right, upper=False, unitriangular=True
        )
    return s[:, past:]


class _Solve(torch.autograd.Function):
    """With l = (I - gain A)^-T ds: df = l, dgain = l . (A s), dA = gain l s^T; rows of A are computed again on the way back."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, q: Tensor, k: Tensor, gain: Tensor) -> Tensor:
        s = _forward(f, q, k, gain, None)
        ctx.save_for_backward(q, k, gain, s)
        return s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, gain, s = ctx.saved_tensors
        df, dgain = ds.clone(), torch.empty_like(gain)
        dq, dk, scale = torch.empty_like(q), torch.zeros_like(k), q.shape[2] ** -0.5
        for begin, end in reversed(_blocks(q.shape[1])):
            a, g = _weights(q[:, begin:end], k[:, :end], begin, 0), gain[:, begin:end]
            turned = _lower(a[:, :, begin:], g).transpose(1, 2)
            own = torch.linalg.solve_triangular(turned, df[:, begin:end], upper=True, unitriangular=True)
            df[:, begin:end] = own
            flow = g.unsqueeze(-1) * own
            df[:, :begin] += a[:, :, :begin].transpose(1, 2) @ flow
            dgain[:, begin:end] = (own * (a @ s[:, :end])).sum(-1)
            of_a = flow @ s[:, :end].transpose(1, 2)
            of_logits = a * (of_a - (a * of_a).sum(-1, keepdim=True)) * scale
            dq[:, begin:end] = of_logits @ k[:, :end]
            dk[:, :end] += of_logits.transpose(1, 2) @ q[:, begin:end]
        return df, dq, dk, dgain
