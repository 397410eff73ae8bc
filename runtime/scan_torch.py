"""The provider `torch` of matrix states: a parallel form in chunks, or token by token for a few; plain PyTorch, differentiable.

Legend: T tokens of S sequences; N chunks of C tokens; H heads; K, V widths. All is computed in fp32, in float64 where q is.

With G the running sum of decays in a chunk and S the state before it:

    A = tril(q k^T exp(G_i - G_j)), V' = v             add
    (1 + tril(b k k^T exp(G_i - G_j), -1)) V' = w v - (b k exp(G)) S            delta: a triangular solve
    o = (q exp(G)) S + A V';  S <- exp(G_C) S + (k exp(G_C - G))^T V'
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .chunks import Chunks, between, pairs, passed
from .recurrence import States, Steps
from .sizes import alike

CHUNK = 64
STEPS = 4
"""As many new tokens are taken one by one."""


def torch_scan(steps: Steps, before: States | None, batch: Batch) -> tuple[Tensor, States]:
    """A `Scan` (recurrence.py)."""
    steps = _wide(steps)
    start = _start(steps, before, batch)
    few = batch.max_new <= STEPS and alike(batch.sizes)
    o, after = _stepped(steps, start, batch) if few else _chunked(steps, start, batch)
    return _read(steps, o), _states(steps, after)


def _wide(steps: Steps) -> Steps:
    """All in fp32 or float64, each head with q, k and v of its own; sums of keys are one more column of v."""
    dtype = torch.promote_types(steps.q.dtype, torch.float32)
    q, k, v = (x.to(dtype).repeat_interleave(steps.heads // x.shape[1], dim=1) for x in (steps.q, steps.k, steps.v))
    if steps.normalize:
        v = torch.cat((v, v.new_ones(*v.shape[:2], 1)), dim=-1)
    decay, erase, write = (None if x is None else x.to(dtype) for x in (steps.decay, steps.erase, steps.write))
    if decay is not None and decay.dim() == 1:
        decay = decay.expand(len(q), -1)
    return Steps(q, k, v, decay, erase, write, steps.heads, steps.scale, steps.normalize)


def _start(steps: Steps, before: States | None, batch: Batch) -> Tensor:
    """[S, H, K, V], with sums of keys as the last column."""
    if before is None:
        return steps.v.new_zeros(batch.sequences, steps.heads, steps.k.shape[-1], steps.v.shape[-1])
    matrix = before.matrix.to(steps.v.dtype)
    if not steps.normalize:
        return matrix
    assert before.sum is not None, "states that normalise have a sum"
    return torch.cat((matrix, before.sum.to(matrix.dtype).unsqueeze(-1)), dim=-1)


def _read(steps: Steps, o: Tensor) -> Tensor:
    """Outputs scaled, or divided by the sum of their weights; where that is 0, so is the output."""
    if not steps.normalize:
        return o * steps.scale
    top, mass = o[..., :-1], o[..., -1:]
    return torch.where(mass == 0, 0.0, top / torch.where(mass == 0, 1.0, mass))


def _states(steps: Steps, after: Tensor) -> States:
    return States(after[..., :-1], after[..., -1]) if steps.normalize else States(after)


def _rows(x: Tensor) -> Tensor:
    """Numbers of a head as numbers of its channels: [..., H] -> [..., H, 1]; [..., H, K] stays."""
    return x if x.dim() == 3 else x.unsqueeze(-1)


def _stepped(steps: Steps, state: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Token by token, all sequences side by side."""

    def apart(x: Tensor) -> Tensor:
        rows = _rows(x)
        return rows.reshape(batch.sequences, batch.max_new, *rows.shape[1:])

    q, k, v = apart(steps.q), apart(steps.k), apart(steps.v)  # [S, n, H, K]
    decay, erase, write = (None if x is None else apart(x) for x in (steps.decay, steps.erase, steps.write))
    outputs = []
    for t in range(batch.max_new):
        if decay is not None:
            state = decay[:, t].exp().unsqueeze(-1) * state
        new = v[:, t]
        if erase is not None and write is not None:
            new = write[:, t] * new - ((erase[:, t] * k[:, t]).unsqueeze(-2) @ state).squeeze(-2)
        state = state + k[:, t].unsqueeze(-1) * new.unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    o = torch.stack(outputs, dim=1).flatten(0, 1) if outputs and batch.sequences else steps.v[:0]
    return o, state


class _Cut(NamedTuple):
    """A scan in chunks. reads [N, H, C, K]: q with its decay; weights [N, H, C, C]; values [N, H, C, V], less `taken`
    [N, H, C, K] of the state before; keys [N, H, C, K] with their decay; kept [N, H, K or 1, 1].
    """

    reads: Tensor
    weights: Tensor
    values: Tensor
    taken: Tensor | None
    keys: Tensor
    kept: Tensor | None


def _chunked(steps: Steps, state: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    size = min(CHUNK, 1 << max(batch.max_new - 1, 0).bit_length())
    chunks = Chunks.of(batch, size)
    cut = _cut(steps, chunks)
    state, done, outputs, begin = chunks.sorted(state), [], [], 0
    for count in chunks.counts:
        done.append(state[count:])
        state, here = state[:count], slice(begin, begin + count)
        values = cut.values[here] if cut.taken is None else cut.values[here] - cut.taken[here] @ state
        outputs.append(cut.reads[here] @ state + cut.weights[here] @ values)
        new = cut.keys[here].transpose(-1, -2) @ values
        state = new + (state if cut.kept is None else cut.kept[here] * state)
        begin += count
    after = chunks.unsorted(torch.cat([state, *reversed(done)]))
    return (chunks.tokens_of(torch.cat(outputs)) if outputs else steps.v[:0]), after


def _cut(steps: Steps, chunks: Chunks) -> _Cut:
    """All that needs no state, for all chunks at once."""
    q, k, v = (chunks.rows(x) for x in (steps.q, steps.k, steps.v))
    erased = None if steps.erase is None else chunks.rows(_rows(steps.erase)) * k
    lefts = (q,) if erased is None else (q, erased)
    reads, keys, kept = q, k, None
    if steps.decay is None:
        found = tuple((x @ k.transpose(-1, -2)).tril() for x in lefts)
    else:
        decay = chunks.rows(_rows(steps.decay))  # [N, H, C, K or 1]
        if decay.shape[-1] == 1:
            within = between(decay.squeeze(-1))
            found = tuple((x @ k.transpose(-1, -2)) * within for x in lefts)
        else:
            found = pairs(lefts, k, decay)
        since = decay.cumsum(-2).exp()
        reads, keys, kept = q * since, k * passed(decay).exp(), since[..., -1, :].unsqueeze(-1)
        erased = None if erased is None else erased * since
    if erased is None or steps.write is None:
        return _Cut(reads, found[0], v, None, keys, kept)
    written = chunks.rows(_rows(steps.write)) * v
    system = found[1].tril(-1)  # the solver takes the diagonal for ones
    both = torch.linalg.solve_triangular(system, torch.cat((written, erased), dim=-1), upper=False, unitriangular=True)
    values, taken = both.split((v.shape[-1], k.shape[-1]), dim=-1)
    return _Cut(reads, found[0], values, taken, keys, kept)
