"""Matrix states by their formula: token by token, and by chunks in the roundings of a kernel.

Legend: T tokens of S sequences; H heads; C tokens of a chunk; K, V widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attnc.codegen.verify.state_cases import Case, Given, Results
from attnc.codegen.verify.state_roundings import PART, exponential, inverse_of, product, rounded, running, stored


def formula(case: Case, given: Given, dtype: torch.dtype) -> Results:
    """o, the states after and the sums after, token by token in `dtype`; what is divided by 0 is 0."""
    kernel = case.kernel
    outs, states, sums = [], [], []
    for one in _sequences(case, given, dtype):
        state, total = one.state, one.total
        for t in range(len(one.q)):
            if one.decay is not None:
                fade = one.decay[t].exp()
                state, total = fade[..., None] * state, fade * total
            value, key = one.v[t], one.k[t]
            if one.erase is not None and one.write is not None:
                value = one.write[t] * value - torch.einsum("hkv,hk->hv", state, one.erase[t] * key)
            state, total = state + key[:, :, None] * value[:, None, :], total + key
            out = torch.einsum("hkv,hk->hv", state, one.q[t])
            outs.append(_share(out, (one.q[t] * total).sum(-1)) if kernel.normalize else out * case.scale)
        states.append(state)
        sums.append(total)
    return _results(case, [torch.stack(outs)] if outs else [], states, sums, dtype)


def in_chunks(case: Case, given: Given, dtype: torch.dtype, chunk: int = 64) -> Results:
    """The formula by chunks as a kernel rounds it: operands of products are in the case's dtype, the rest is in `dtype`; where
    that is float32, products of float32 operands and a state are sums of one product after another.
    """
    outs, states, sums = [], [], []
    for one in _sequences(case, given, dtype):
        state, total = one.state, one.total
        for first in range(0, len(one.q), chunk):
            out, state, total = _chunk(case, one.rows(slice(first, first + chunk)), state, total)
            outs.append(out)
        states.append(state)
        sums.append(total)
    return _results(case, outs, states, sums, dtype)


class _Sequence(NamedTuple):
    """One sequence with a head for each state: q, k [N, H, K], v [N, H, V]; decay None or [N, H, 1 or K]; strengths alike."""

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    erase: Tensor | None
    write: Tensor | None
    state: Tensor
    total: Tensor

    def rows(self, which: slice) -> _Sequence:
        """Some of its tokens."""
        decay, erase, write = (None if x is None else x[which] for x in (self.decay, self.erase, self.write))
        q, k, v = (x[which] for x in (self.q, self.k, self.v))
        return _Sequence(q, k, v, decay, erase, write, self.state, self.total)


def _sequences(case: Case, given: Given, dtype: torch.dtype) -> Iterator[_Sequence]:
    x = {name: None if of is None else of.to(dtype) for name, of in given.items()}
    q, k, v = (_there(x[name]).repeat_interleave(share, 1) for name, share in zip("qkv", case.shares, strict=True))

    def wide(gate: Tensor | None) -> Tensor | None:
        """[H], [T, H] or [T, H, width] -> [T, H, 1 or width]."""
        if gate is None or gate.dim() == 3:
            return gate
        return gate.expand(len(q), case.heads)[..., None]

    whole = _Sequence(q, k, v, wide(x["decay"]), wide(x["erase"]), wide(x["write"]), q, q)
    begin = 0
    for sequence, size in enumerate(case.sizes):
        zeros = q.new_zeros(case.heads, case.kernel.key_width, case.kernel.value_width)
        before, sums = x["before"], x["sum_before"]
        state = zeros if before is None else before[sequence]
        total = zeros[..., 0] if sums is None else sums[sequence]
        yield whole.rows(slice(begin, begin + size))._replace(state=state, total=total)
        begin += size


def _there(x: Tensor | None) -> Tensor:
    assert x is not None, "every launch has q, k and v"
    return x


def _results(case: Case, outs: list[Tensor], states: list[Tensor], sums: list[Tensor], dtype: torch.dtype) -> Results:
    empty = torch.zeros(0, case.heads, case.kernel.value_width, dtype=dtype, device=case.device)
    return {"o": torch.cat(outs) if outs else empty, "after": torch.stack(states), "sum_after": torch.stack(sums)}


def _share(out: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm == 0, 0.0, out.movedim(-1, 0) / torch.where(norm == 0, 1.0, norm)).movedim(0, -1)


def _chunk(case: Case, one: _Sequence, state: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(o, the state after, the sum after) of the tokens of a chunk."""
    query, key, value = one.q, one.k, one.v
    size, dtype = len(query), query.dtype

    decay = torch.zeros_like(query[..., :1]) if one.decay is None else one.decay
    sums = decay.double().cumsum(0)
    spans = ((sums[:, None] - sums[None, :]).clamp(max=0).to(dtype), sums.to(dtype), (sums[-1] - sums).to(dtype))
    if case.kernel.decay == "vector" and dtype == torch.float32:  # kernels multiply what single tokens leave
        multiplied = running(exponential(decay.detach()))
        apart, since, until = (x * (span - span.detach()).exp() for x, span in zip(multiplied, spans, strict=True))
    else:
        apart, since, until = (span.exp() for span in spans)
    apart = apart.expand(-1, -1, -1, key.shape[-1])
    lower = torch.ones(size, size, device=query.device, dtype=dtype).tril()[..., None]

    def dot(a: Tensor, b: Tensor, begin: Tensor | None = None) -> Tensor:
        return product(a, b, begin, case.dtype != torch.float32)

    def keep(x: Tensor) -> Tensor:
        return stored(x, case.dtype)

    def headed(x: Tensor) -> Tensor:
        """[tokens, H, width] -> [H, tokens, width], or back."""
        return x.transpose(0, 1)

    def products(rows: Tensor) -> Tensor:
        """rows_i . key_j, with what is left between them, [i, j, H]. Where channels decay, operands of a part and of later ones
        meet at the part's end.
        """
        if sums.shape[-1] == 1:
            return dot(headed(rows), key.permute(1, 2, 0)).permute(1, 2, 0) * apart[..., 0]
        found = torch.einsum("ihk,jhk,ijhk->ijh", rows, key, apart)
        for begin in range(0, size, PART):
            end = min(begin + PART, size)
            later = rounded(rows[end:] * (sums[end:] - sums[end - 1]).to(dtype).exp(), case.dtype)
            earlier = rounded(key[begin:end] * (sums[end - 1] - sums[begin:end]).to(dtype).exp(), case.dtype)
            found[end:, begin:end] = torch.einsum("ihk,jhk->ijh", later, earlier)
        return found

    pairs = products(query) * lower
    held = keep(state)
    if one.erase is not None and one.write is not None:
        erased = products(one.erase * key) * (lower - torch.eye(size, dtype=dtype, device=query.device)[..., None])
        system = torch.eye(size, dtype=dtype, device=query.device) + erased.permute(2, 0, 1)
        inverse = inverse_of(system, dtype == torch.float32 != case.dtype)
        right = headed(one.write * value) - dot(headed(keep(one.erase * key * since)), held)
        value = headed(dot(keep(inverse), keep(right)))
    value = keep(value)
    out = dot(headed(keep(query * since)), held)
    out = headed(dot(keep(pairs).permute(2, 0, 1), headed(value), out))
    if case.kernel.normalize:
        out = _share(out, torch.einsum("ihk,hk->ih", query * since, total) + pairs.sum(1))
        kept = keep(key * until) if case.kernel.decay == "vector" else key * until  # the former are keys of the state too
        total = total * since[-1] + kept.sum(0)
    else:
        out = out * case.scale
    after = dot(keep(key * until).permute(1, 2, 0), headed(value), since[-1][..., None] * state)
    return out, after, total
