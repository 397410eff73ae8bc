"""Launches of matrix states: the formula token by token, inputs, and how far off a kernel may be."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from attnc.compiler.families import Recurrence

LIMIT = 1.5
NAMES = ("q", "k", "v", "decay", "erase", "write", "before", "sum_before")
RESULTS = ("o", "after", "sum_after")


@dataclass(frozen=True)
class Case:
    """A call: sequences of `sizes`, `heads` states; q, k and v have heads / share of them; gates as deep as `gates` a token."""

    kernel: Recurrence
    sizes: tuple[int, ...]
    heads: int = 2
    shares: tuple[int, int, int] = (1, 1, 1)
    gates: tuple[float, ...] = (0.0, -0.05, -1.0, -50.0)
    before: bool = True
    integers: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


def inputs(case: Case) -> dict[str, Tensor | None]:
    """What tokens bring, and the states before, by NAMES; strengths up to 2, some gates 0, some deep."""
    kernel, tokens, heads = case.kernel, sum(case.sizes), case.heads
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x * 2).round().clamp(-2, 2) if case.integers else x

    def keys(share: int) -> Tensor:
        x = normal(tokens, heads // share, kernel.key_width)
        if kernel.normalize:
            return x.abs()
        return x if kernel.update == "add" else x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)

    def strengths(kind: str, width: int) -> Tensor:
        x = torch.rand(tokens, heads, *([width] if kind == "vector" else []), generator=generator, dtype=torch.float64)
        return (2 * x).round() if case.integers else 2 * x

    decay = None
    if kernel.decay != "none":
        whole = (tokens, heads, kernel.key_width)
        shape = {"head": whole[1:2], "scalar": whole[:2], "vector": whole}[kernel.decay]
        depth = torch.tensor(case.gates, dtype=torch.float64)[torch.randint(len(case.gates), shape, generator=generator)]
        decay = depth * torch.rand(shape, generator=generator, dtype=torch.float64)
    delta = kernel.update == "delta"
    q, k = keys(case.shares[0]), keys(case.shares[1])
    found = {
        "q": q,
        "k": k,
        "v": normal(tokens, heads // case.shares[2], kernel.value_width),
        "decay": decay,
        "erase": strengths(kernel.erase, kernel.key_width) if delta else None,
        "write": strengths(kernel.write, kernel.value_width) if delta else None,
        "before": normal(len(case.sizes), heads, kernel.key_width, kernel.value_width) if case.before else None,
        "sum_before": normal(len(case.sizes), heads, kernel.key_width).abs() if case.before and kernel.normalize else None,
    }
    elements = {"q", "k", "v"}
    return {
        name: x if x is None else x.to(case.dtype if name in elements else torch.float32).to(case.device)
        for name, x in found.items()
    }


def formula(case: Case, given: dict[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor]:
    """o, the states after and the sums after, token by token in `dtype`."""
    kernel, heads = case.kernel, case.heads
    x = {name: None if of is None else of.to(dtype) for name, of in given.items()}
    q, k, v = (x[name].repeat_interleave(share, 1) for name, share in zip("qkv", case.shares, strict=True))
    outs, states, sums = [], [], []
    begin = 0
    for sequence, size in enumerate(case.sizes):
        zeros = q.new_zeros(heads, kernel.key_width, kernel.value_width)
        state = zeros if x["before"] is None else x["before"][sequence]
        total = zeros[..., 0] if x["sum_before"] is None else x["sum_before"][sequence]
        for t in range(begin, begin + size):
            if x["decay"] is not None:
                fade = (x["decay"] if kernel.decay == "head" else x["decay"][t]).exp()
                fade = fade if kernel.decay == "vector" else fade[:, None]
                state, total = fade[..., None] * state, fade * total
            value = v[t]
            if kernel.update == "delta":
                erase, write = (of[t] if of[t].dim() == 2 else of[t][:, None] for of in (x["erase"], x["write"]))
                value = write * value - torch.einsum("hkv,hk->hv", state, erase * k[t])
            state, total = state + k[t][:, :, None] * value[:, None, :], total + k[t]
            out = torch.einsum("hkv,hk->hv", state, q[t])
            outs.append(out / (q[t] * total).sum(-1, keepdim=True) if kernel.normalize else out * SCALE)
        states.append(state)
        sums.append(total)
        begin += size
    empty = q.new_zeros(0, heads, kernel.value_width)
    return {"o": torch.stack(outs) if outs else empty, "after": torch.stack(states), "sum_after": torch.stack(sums)}


SCALE = 0.25


def steps(case: Case, given: dict[str, Tensor | None]) -> SimpleNamespace:
    """What the kernel files are given."""
    offsets = torch.tensor([0, *torch.tensor(case.sizes).cumsum(0).tolist()], device=case.device)
    rest = {name: given[name] for name in NAMES[:6]}
    return SimpleNamespace(
        **rest, offsets=offsets, heads=case.heads, scale=SCALE, max_new=max(case.sizes), normalize=case.kernel.normalize
    )


def rms(got: Tensor, want: Tensor) -> float:
    """The root mean square difference; NaN wherever there is one."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0


FORMS = {
    "plain": Recurrence(key_width=16, value_width=16),
    "head": Recurrence("head", normalize=True, key_width=24, value_width=20),
    "scalar": Recurrence("scalar", key_width=24, value_width=33),
    "vector": Recurrence("vector", normalize=True, key_width=24, value_width=20),
    "delta": Recurrence("none", "delta", key_width=16, value_width=24),
    "gated_delta": Recurrence("scalar", "delta", key_width=24, value_width=20),
    "strengths_of_channels": Recurrence("head", "delta", "vector", "vector", key_width=20, value_width=20),
    "vector_delta": Recurrence("vector", "delta", "scalar", "vector", key_width=24, value_width=20),
    "vector_erase": Recurrence("vector", "delta", "vector", "scalar", key_width=16, value_width=16),
}
"""Kernels that between them have every hole."""


def check(case: Case, got: dict[str, Tensor | None], want: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, float]:
    """Shapes and errors of results or gradients by name, beside those of the formula in the kernel's precision; the ratios."""
    ratios = {}
    for name, x in got.items():
        if x is not None:
            assert x.shape == want[name].shape, name
            assert not x.isnan().any(), name
            error, allowed = rms(x, want[name]), rms(own[name].to(x.dtype), want[name])
            ratios[name] = error / allowed if allowed else float(error > 0) * 9.0
    assert all(ratio <= LIMIT for ratio in ratios.values()), ratios
    return ratios
