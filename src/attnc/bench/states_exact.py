"""What must come out of a launch of matrix states, in float64, for some heads; and how far from it rounding alone may lead.

Rounding is that of a fused kernel in chunks: what it multiplies is in the launch's dtype, sums, gates and states in float32.
An error may be twice that, as for softmaxes (exact.py). Compared are the heads of the first and the last sequence that the
first head of q, k or v serves, and those that the last one serves, with all their tokens.

Legend: N tokens of a sequence; H heads; C tokens of a chunk; K, V widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.bench.exact import FACTOR, Answer, Found, rms
from attnc.bench.states import StatesWork

CHUNK = 64


@dataclass(frozen=True)
class Part:
    """The heads that are compared: states `first`..`last` (both included) of a sequence."""

    sequence: int
    first: int
    last: int

    def of(self, x: Tensor, work: StatesWork) -> Tensor:
        """Their part of a tensor of all tokens, [N, heads, ...]."""
        size = len(x) // work.sequences
        ratio = work.launch.heads // x.shape[1]
        return x[self.sequence * size : (self.sequence + 1) * size, self.first // ratio : self.last // ratio + 1]


def answer(work: StatesWork) -> Answer:
    """Computes both."""
    exact, rounded = (_found(work, dtype) for dtype in (None, work.q.dtype))
    allowed = {name: FACTOR * rms(rounded[name], want) for name, want in exact.items()}
    return Answer(parts(work), exact, allowed, work.o_grad)


def parts(work: StatesWork) -> tuple[Part, ...]:
    """States that share no q, k and v with others."""
    n = work.launch.numbers
    shared = n.heads // min(n.q_heads, n.k_heads, n.v_heads)
    blocks = {0, n.heads - shared}
    return tuple(Part(s, h, h + shared - 1) for s in sorted({0, work.sequences - 1}) for h in sorted(blocks))


def errors(work: StatesWork, right: Answer, got: Found) -> dict[str, float]:
    """Root mean square errors of a participant's results, which are whole: [T, heads, ...]."""
    return {name: rms(_joined([part.of(x, work) for part in right.sample]), right.exact[name]) for name, x in got.items()}


def _joined(found: list[Tensor]) -> Tensor:
    return torch.stack(found)


def _found(work: StatesWork, dtype: torch.dtype | None) -> Found:
    """In float64, or (`dtype`) as a fused kernel rounds."""
    wide = torch.float64 if dtype is None else torch.float32
    results: dict[str, list[Tensor]] = {}
    for part in parts(work):
        leaves = {
            name: part.of(x, work).to(wide).requires_grad_(work.o_grad is not None)
            for name, x in {"q": work.q, "k": work.k, "v": work.v, **work.gates}.items()
        }
        heads = part.last - part.first + 1
        whole = {name: _repeated(leaves[name], heads) for name in "qkv"}
        decay = leaves.get("decay")
        if decay is None and work.decay is not None:
            decay = work.decay[part.first : part.last + 1].to(wide).expand(len(whole["q"]), -1)
        strengths = leaves.get("erase"), leaves.get("write")
        state, total = (None if x is None else x[part.sequence, part.first : part.last + 1] for x in (work.before, work.total))
        o = in_chunks(whole, decay, strengths, state, total, work.launch.scan, dtype)
        results.setdefault("o", []).append(o.detach())
        if work.o_grad is not None:
            grads = torch.autograd.grad(o, list(leaves.values()), part.of(work.o_grad, work).to(wide))
            for name, grad in zip(leaves, grads, strict=True):
                results.setdefault(name, []).append(grad)
    of_tokens = {"o", "q", "k", "v"}
    stored = {name: dtype if dtype is not None and name in of_tokens else wide for name in results}
    return {name: _joined(found).to(stored[name]) for name, found in results.items()}


def _repeated(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


class _Stored(torch.autograd.Function):
    """A number as a kernel multiplies it, rounded to a dtype; its gradient is rounded as well, being multiplied next."""

    @staticmethod
    def forward(context: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        context.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None]:
        (grad,) = gradients
        return grad.to(context.dtype).to(grad.dtype), None


def in_chunks(
    x: dict[str, Tensor],
    decay: Tensor | None,
    strengths: tuple[Tensor | None, Tensor | None],
    state: Tensor | None,
    total: Tensor | None,
    scan: Any,
    dtype: torch.dtype | None,
) -> Tensor:
    """o [N, H, V] of one sequence, chunk by chunk; `dtype` rounds what a fused kernel multiplies. q, k, v [N, H, width] in x;
    decay [N, H] or [N, H, K], strengths [N, H] or by channel; state [H, K, V], total [H, K].
    """
    q, k, v = (x[name].transpose(0, 1) for name in "qkv")  # [H, N, width]
    if scan.normalize:
        v = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)

    def rows(gate: Tensor | None) -> Tensor | None:
        if gate is None:
            return None
        wide = gate if gate.dim() == 3 else gate.unsqueeze(-1)
        return wide.transpose(0, 1)

    def stored(x: Tensor) -> Tensor:
        found: Tensor = x if dtype is None else _Stored.apply(x, dtype)  # type: ignore[no-untyped-call]
        return found

    decays, (erases, writes) = rows(decay), map(rows, strengths)
    held = q.new_zeros(len(q), q.shape[-1], v.shape[-1]) if state is None else state.to(q.dtype)
    if state is not None and total is not None:
        held = torch.cat((held, total.to(q.dtype).unsqueeze(-1)), dim=-1)
    outputs: list[Tensor] = []
    for at in range(0, q.shape[1], CHUNK):
        here = slice(at, at + CHUNK)
        gates = tuple(None if gate is None else gate[:, here] for gate in (decays, erases, writes))
        part, held = _chunk(q[:, here], k[:, here], v[:, here], gates, held, stored)
        outputs.append(part)
    o: Tensor = torch.cat(outputs, dim=1).transpose(0, 1)
    return o[..., :-1] / o[..., -1:] if scan.normalize else o * float(scan.scale)


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor | None, ...], held: Tensor, stored: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(o, the state after) of one chunk: q, k [H, C, K], v [H, C, V], held [H, K, V]."""
    decay, erase, write = gates
    size = q.shape[1]
    sums = torch.zeros_like(q[..., :1]) if decay is None else decay.cumsum(1)  # [H, C, 1 or K]
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    since = sums.exp()

    def pairs(left: Tensor) -> Tensor:
        if sums.shape[-1] == 1:
            between = (sums - sums.transpose(1, 2)).masked_fill(~lower, float("-inf")).exp()
            return (stored(left) @ stored(k).transpose(1, 2)) * between
        between = (sums[:, :, None] - sums[:, None]).masked_fill(~lower[..., None], float("-inf")).exp()
        return torch.einsum("hik,hjk,hijk->hij", stored(left), stored(k), between)

    new = v
    if erase is not None and write is not None:
        erased = erase * k
        system = torch.eye(size, dtype=q.dtype, device=q.device) + pairs(erased).tril(-1)
        right = write * v - stored(erased * since) @ stored(held)
        new = torch.linalg.solve_triangular(system, right, upper=False)
    o: Tensor = stored(q * since) @ stored(held) + stored(pairs(q)) @ stored(new)
    left = (sums[:, -1:] - sums).exp()
    kept = since[:, -1].unsqueeze(-1)
    after: Tensor = kept * held + stored(k * left).transpose(1, 2) @ stored(new)
    return o, after
