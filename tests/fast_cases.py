"""Launches of fast weights for tests of their kernels: forms, inputs, and how far off a kernel may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.compiler.families import FastWeights
from attnc.runtime.batch import lay_out
from attnc.runtime.fast import Learned, Lessons, Rule, Stream, Teach
from attnc.runtime.fast_torch import torch_teach

LIMIT = 1.5
DRAWS = 3
MOST = 1e4
"""Larger than any number where rates settle: others would be rounding alone."""
FORMS = {
    "titans": FastWeights(depth=2, hidden=32, momentum="token", decay="token", key_width=16, value_width=16),
    "linear": FastWeights(momentum="token", decay="head", key_width=24, value_width=20),
    "plain": FastWeights(key_width=16, value_width=48),
    "ttt_linear": FastWeights(norm=True, residual=True, after_write=True, key_width=20, value_width=20),
    "ttt_mlp": FastWeights(depth=2, hidden=20, norm=True, residual=True, after_write=True, key_width=16, value_width=16),
}
"""Kernels that between them have every branch."""


@dataclass(frozen=True)
class Case:
    """A call: sequences of `sizes` new tokens behind `pasts`, of which the last ones wait in an unfinished chunk."""

    family: FastWeights
    sizes: tuple[int, ...] = (20, 3, 0, 9)
    pasts: tuple[int, ...] = (5, 0, 0, 8)
    chunk: int = 8
    heads: int = 2
    k_heads: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    most: tuple[float, float, float] = (0.2, 0.9, 0.2)

    @property
    def rule(self) -> Rule:
        family = self.family
        return Rule(
            self.chunk,
            momentum=family.momentum != "none",
            after_write=family.after_write,
            residual=family.residual,
        )


def shapes(family: FastWeights) -> dict[str, tuple[int, int]]:
    if family.depth == 1:
        return {"map_0": (family.value_width, family.key_width)}
    return {"map_0": (family.hidden, family.key_width), "map_1": (family.value_width, family.hidden)}


def inputs(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """All that comes in, by name; in float64, of numbers that the case's dtypes hold."""
    family, make = case.family, torch.Generator().manual_seed(seed)
    stream = stream_of(case)
    new, tokens = len(stream.spots), stream.batch.tokens

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype).double()

    found = {
        "q": normal(new, case.heads, family.key_width, dtype=case.dtype),
        "k": normal(tokens, case.k_heads, family.key_width),
        "v": normal(tokens, case.heads, family.value_width, dtype=case.dtype),
    }
    found["k"] = (found["k"] / found["k"].norm(dim=-1, keepdim=True)).to(case.dtype).double()
    steep = 10 if family.norm else 1  # where a layer norm divides by little
    for name, most in zip(("lr", "momentum", "decay"), case.most, strict=True):
        of = getattr(family, name)
        shape = (tokens, case.heads) if of == "token" else (case.heads,)
        if of != "none":
            found[name] = (most / steep * torch.rand(shape, generator=make)).double()
    for name, shape in shapes(family).items():
        found[f"start.{name}"] = normal(case.heads, *shape) / shape[1] ** 0.5
        found[f"before.{name}"] = normal(len(case.sizes), case.heads, *shape) / shape[1] ** 0.5
        if family.momentum != "none":
            found[f"moment.{name}"] = normal(len(case.sizes), case.heads, *shape) / shape[1] ** 0.5 / 4
    if family.norm:
        found |= {name: normal(case.heads, family.value_width) for name in ("weight", "bias")}
    return {name: x.to(case.device) for name, x in found.items()}


def stream_of(case: Case) -> Stream:
    totals = tuple(a + b for a, b in zip(case.sizes, case.pasts, strict=True))
    device, past = torch.device(case.device), torch.tensor(case.pasts, device=case.device)
    return Stream.of(lay_out(case.sizes, case.pasts, totals, "prefill", (1, sum(case.sizes)), device, past), case.chunk)


def run(case: Case, teach: Teach, given: dict[str, Tensor], dtype: torch.dtype, back: bool = True) -> dict[str, Tensor]:
    """Results and, with `back`, the gradients of all that comes in; q, k and v in `dtype`, the rest at least in fp32."""
    wide, narrow = torch.promote_types(dtype, torch.float32), ("q", "k", "v")
    leaves = {name: x.to(dtype if name in narrow else wide).detach().requires_grad_(back) for name, x in given.items()}

    def of(kind: str) -> dict[str, Tensor]:
        return {name: leaves[f"{kind}.{name}"] for name in shapes(case.family) if f"{kind}.{name}" in leaves}

    rates = tuple(leaves.get(name) for name in ("lr", "momentum", "decay"))
    norm = (leaves["weight"], leaves["bias"]) if case.family.norm else None
    lessons = Lessons(leaves["q"], leaves["k"], leaves["v"], rates, of("start"), norm)
    moment = of("moment") or None
    o, after = teach(case.rule, lessons, Learned(of("before"), moment), stream_of(case))
    found = {"o": o, **{f"after.{name}": x for name, x in after.weights.items()}}
    found |= {f"moment.{name}": x for name, x in (after.moment or {}).items()}
    results = {name: x.detach() for name, x in found.items()}
    if back:
        make = torch.Generator().manual_seed(7)
        outer = [torch.randn(x.shape, generator=make).to(x.dtype).to(x.device) for x in found.values()]
        grads = torch.autograd.grad(list(found.values()), list(leaves.values()), outer, allow_unused=True)
        results |= {f"{name}_grad": x for name, x in zip(leaves, grads, strict=True) if x is not None}
    return results


def rms(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).square().mean().sqrt()) if want.numel() else 0.0


def compared(
    case: Case, teach: Teach, seed: int = 0, back: bool = True, own: Callable[..., object] = torch_teach
) -> dict[str, float]:
    """Errors beside those of plain torch in the same dtype, the worst of several draws, by name."""
    errors: dict[str, float] = {}
    for draw in range(seed, seed + DRAWS):
        given = inputs(case, draw)
        want = run(case, torch_teach, given, torch.float64, back)
        plain = run(case, own, given, case.dtype, back)
        errors |= {name: max(errors.get(name, 0.0), rms(plain[name], x)) for name, x in want.items()}
        assert all(float(x.abs().max()) < MOST for x in want.values() if x.numel()), "rates that settle"
        if draw == seed:
            first, exact = given, want
    got = run(case, teach, first, case.dtype, back)
    assert set(got) == set(exact)
    ratios = {}
    for name, x in exact.items():
        assert got[name].shape == x.shape, name
        assert not got[name].isnan().any(), name
        error = rms(got[name], x)
        ratios[name] = error / errors[name] if error else 0.0
    return ratios
