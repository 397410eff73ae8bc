"""Launches of fast weights to compare kernels on: inputs, results with their gradients, and how far off plain PyTorch is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from attnc.codegen.verify.cases import poisoned
from attnc.codegen.verify.net_roundings import Draws, Errors, Expected, Found, measure_of, rms
from attnc.compiler.families import FastWeights
from attnc.runtime.batch import lay_out
from attnc.runtime.fast import Learned, Lessons, Rule, Stream, Teach
from attnc.runtime.fast_kernels import Given
from attnc.runtime.fast_rows import Rows, maps_of
from attnc.runtime.fast_torch import torch_teach

MOST = 1e3
"""Larger than any number where rates settle, but for gradients of rates, which are as large as rates are small: where they do
not settle, rounding is all there is.
"""

MOMENTUM, LEAST = 0.9, 0.1
"""The largest momentum; the part of the largest that a rate at least is: gradients by logarithms are divided by rates, so tiny
ones would make all of an error.
"""


@dataclass(frozen=True)
class Case:
    """A call: sequences of `sizes` new tokens behind `pasts`, of which the last ones wait in an unfinished chunk."""

    family: FastWeights
    sizes: tuple[int, ...] = (13, 3, 0, 9)
    pasts: tuple[int, ...] = (5, 0, 0, 8)
    chunk: int = 8
    heads: int = 2
    k_heads: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    back: bool = True

    @property
    def rule(self) -> Rule:
        """How its nets learn."""
        family = self.family
        return Rule(
            self.chunk,
            momentum=family.momentum != "none",
            after_write=family.after_write,
            weight_norm=family.weight_norm,
            residual=family.residual,
        )

    @property
    def stream(self) -> Stream:
        """Where its tokens lie."""
        totals = tuple(size + past for size, past in zip(self.sizes, self.pasts, strict=True))
        device, past = torch.device(self.device), torch.tensor(self.pasts, device=self.device)
        return Stream.of(lay_out(self.sizes, self.pasts, totals, "prefill", (1, sum(self.sizes)), device, past), self.chunk)


def shapes(family: FastWeights) -> dict[str, tuple[int, int]]:
    """Of a net's maps, [outputs, inputs]."""
    if family.depth == 1:
        return {"map_0": (family.value_width, family.key_width)}
    return {"map_0": (family.hidden, family.key_width), "map_1": (family.value_width, family.hidden)}


def rates(family: FastWeights, chunk: int) -> dict[str, float]:
    """The largest lr, momentum and decay with which nets settle in chunks of so many tokens, whose keys have length 1.

    A chunk is one step of gradient descent on the sum of its tokens' errors, which settles where lr times the curvature is less
    than 2. The curvature of one map is twice the largest eigenvalue of sum k k^T, about (1 + sqrt(chunk / D))^2 (Marchenko and
    Pastur, 1967). Of more maps it is that of the map outwards, whose inputs squared add up to about hidden / D / 2, and of
    those inwards, seen through the one outwards. A layer norm divides by deviations, of about sqrt(1 / D), or half of that.
    Momentum adds 1 + m + m^2 ... steps. By decay a chunk leaves a third.
    """
    wide, width, hidden = family.key_width, family.value_width, family.hidden
    curvature = 2 * (1 + (chunk / wide) ** 0.5) ** 2
    if hidden:
        curvature *= hidden / wide / 2 + (1 + (width / hidden) ** 0.5) ** 2
    if family.norm:
        curvature *= 2 * wide * (4 if hidden else 1)
    mean = {"none": 0.0, "token": MOMENTUM / 2}.get(family.momentum, MOMENTUM)
    return {"lr": min(0.2, (1 - mean) / curvature), "momentum": MOMENTUM, "decay": min(0.2, 2 / chunk)}


def part(x: Tensor) -> Tensor:
    """Numbers from 0 to 1 as ones from LEAST to 1."""
    return LEAST + (1 - LEAST) * x


def inputs(case: Case, seed: int = 0) -> Found:
    """All that comes in, by name; in float64, of numbers that the case's dtypes hold. Keys have length 1."""
    family, make, stream = case.family, torch.Generator().manual_seed(seed), case.stream
    tokens = stream.batch.tokens

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64).float().double()

    keys = normal(tokens, case.k_heads, family.key_width)
    found = {
        "q": normal(len(stream.spots), case.heads, family.key_width).to(case.dtype),
        "k": (keys / keys.norm(dim=-1, keepdim=True)).to(case.dtype),
        "v": normal(tokens, case.heads, family.value_width).to(case.dtype),
    }
    for name, most in rates(family, case.chunk).items():
        of = getattr(family, name)
        if of != "none":
            shape = (tokens, case.heads) if of == "token" else (case.heads,)
            found[name] = most * part(torch.rand(shape, generator=make))
    for name, outer in shapes(family).items():
        length = outer[1] ** 0.5
        found[f"start.{name}"] = normal(case.heads, *outer) / length
        found[f"before.{name}"] = normal(len(case.sizes), case.heads, *outer) / length
        if family.momentum != "none":
            found[f"moment.{name}"] = normal(len(case.sizes), case.heads, *outer) / length / 4
    if family.norm:
        found |= {"weight": 1 + normal(case.heads, family.value_width) / 4, "bias": normal(case.heads, family.value_width)}
    return {name: x.to(case.device).double() for name, x in found.items()}


def run(case: Case, teach: Teach, given: Found, dtype: torch.dtype) -> Found:
    """Results and, with `back`, gradients of all that comes in; q, k and v in `dtype`, the rest at least in fp32."""
    wide, narrow = torch.promote_types(dtype, torch.float32), ("q", "k", "v")
    leaves = {name: x.to(dtype if name in narrow else wide).detach().requires_grad_(case.back) for name, x in given.items()}

    def of(kind: str) -> Found:
        return {name: leaves[f"{kind}.{name}"] for name in shapes(case.family) if f"{kind}.{name}" in leaves}

    norm = (leaves["weight"], leaves["bias"]) if case.family.norm else None
    rates = (leaves.get("lr"), leaves.get("momentum"), leaves.get("decay"))
    lessons = Lessons(leaves["q"], leaves["k"], leaves["v"], rates, of("start"), norm)
    o, after = teach(case.rule, lessons, Learned(of("before"), of("moment") or None), case.stream)
    found = {"o": o.to(dtype)} | {f"after.{name}": x for name, x in after.weights.items()}
    found |= {f"after_moment.{name}": x for name, x in (after.moment or {}).items()}
    results = {name: x.detach() for name, x in found.items()}
    if case.back:
        make = torch.Generator().manual_seed(7)
        outer = [torch.randn(x.shape, generator=make).to(x) for x in found.values()]
        grads = torch.autograd.grad(list(found.values()), list(leaves.values()), outer, allow_unused=True)
        results |= {f"{name}_grad": x for name, x in zip(leaves, grads, strict=True) if x is not None}
    return results


def settled(case: Case, want: Found) -> None:
    """Where rates do not settle, there is nothing to compare."""
    of_rates = {f"{name}_grad" for name in rates(case.family, case.chunk)}
    found = (float(x.abs().max()) for name, x in want.items() if x.numel() and name not in of_rates)
    assert all(largest < MOST for largest in found), "rates that settle"


def expected(case: Case) -> Draws:
    """Of a case, draw by draw."""

    def of(draw: int) -> Expected:
        given = inputs(case, draw)
        want = run(case, torch_teach, given, torch.float64)
        settled(case, want)
        plain = run(case, measure_of(case.dtype), given, case.dtype)
        return Expected(given, want, {name: rms(plain[name], x) for name, x in want.items()})

    return Draws(of)


def compared(case: Case, teach: Teach, wanted: Draws | None = None) -> Errors:
    """(error, the measure's), by the name of a result or gradient."""

    def tried(given: Found) -> Found:
        with poisoned():
            return run(case, teach, given, case.dtype)

    return (wanted or expected(case)).compared(tried)


def on_a_text(module: ModuleType, chunks: int, heads: int, size: int, element_size: int, device: str) -> Callable[[], None]:
    """A kernel file's launches for a text of one sequence: there, back, and gradients of its chunks."""
    make = torch.Generator(device).manual_seed(0)
    wide, width = module.KEY_WIDTH, module.VALUE_WIDTH
    hidden = getattr(module, "HIDDEN", 0)

    def drawn(*shape: int) -> Tensor:
        found: Tensor = torch.randn(*shape, generator=make, device=device) / shape[-1] ** 0.5
        return found

    def rate(value: float, *shape: int) -> Tensor | None:
        return torch.full(shape, value, device=device) if module.MOMENTUM else None

    amounts = torch.full((chunks, heads, size), 0.01, device=device), rate(0.01, chunks, heads, size)
    factors = torch.full((chunks, heads), 0.9, device=device), rate(0.5, chunks, heads), rate(0.5, chunks, heads)
    norm = (torch.ones(heads, width, device=device), torch.zeros(heads, width, device=device)) if module.NORM else (None, None)
    tensors = drawn(chunks, heads, size, wide), drawn(chunks, heads, size, width), *amounts, *factors, *norm
    begins, own = torch.arange(chunks, device=device), torch.tensor([chunks], dtype=torch.int32, device=device)
    given = Given(tensors, begins, own, (1,) * chunks, element_size)
    known = drawn(1, heads, hidden * (wide + width) or wide * width)
    moment = torch.zeros_like(known) if module.MOMENTUM else None
    kept_grad = drawn(chunks, *known.shape[1:])
    goals = torch.ones(chunks, heads, hidden + width, device=device) if getattr(module, "WEIGHT_NORM", False) else None
    there = given if goals is None else given._replace(rows=(goals,))

    def work() -> None:
        kept, kept_moment, after, after_moment, raw = module.sweep(there, known, moment)
        back, begun = given, kept
        if goals is not None:
            begun, found = Rows.of(kept, goals, maps_of(module))
            back = given._replace(rows=found)
        rows, rows_moment, *_ = module.go_back(back, begun, raw, kept_grad, None, after, after_moment)
        module.lessons(back, begun, kept_moment, raw, rows, rows_moment)

    return work
