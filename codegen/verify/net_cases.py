"""Launches of fast weights to compare kernels on: inputs, results with their gradients, and how far off plain PyTorch is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.verify.cases import poisoned
from attnc.compiler.families import FastWeights
from attnc.runtime.batch import lay_out
from attnc.runtime.fast import Learned, Lessons, Rule, Stream, Teach
from attnc.runtime.fast_kernels import Given
from attnc.runtime.fast_torch import torch_teach

DRAWS = 3
"""Draws of which plain PyTorch's error is the worst: in one it may be lucky."""

MOST = 1e4
"""Larger than any number where rates settle: where they do not, rounding is all there is."""

RATES = (("lr", 0.2), ("momentum", 0.9), ("decay", 0.2))
STEEP = 10
"""By how much smaller steps are where a layer norm divides by little."""

Found = dict[str, Tensor]


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
        return Rule(self.chunk, momentum=family.momentum != "none", after_write=family.after_write, residual=family.residual)

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
    for name, most in RATES:
        of = getattr(family, name)
        if of != "none":
            shape = (tokens, case.heads) if of == "token" else (case.heads,)
            found[name] = most / (STEEP if family.norm else 1) * torch.rand(shape, generator=make)
    for name, outer in shapes(family).items():
        length = outer[1] ** 0.5
        found[f"start.{name}"] = normal(case.heads, *outer) / length
        found[f"before.{name}"] = normal(len(case.sizes), case.heads, *outer) / length
        if family.momentum != "none":
            found[f"moment.{name}"] = normal(len(case.sizes), case.heads, *outer) / length / 4
    if family.norm:
        found |= {name: normal(case.heads, family.value_width) for name in ("weight", "bias")}
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


@dataclass(frozen=True, eq=False)
class Expected:
    """What comes in, by name; what must come out, in float64; and how far off plain PyTorch is, by the name of a result.

    Plain PyTorch works in the same dtype, with 16 bits in products of TF32 where a GPU has them, as the kernels do.
    """

    given: Any
    want: Found
    errors: dict[str, float]


def expected(case: Case) -> Expected:
    """Of a case: the worst of plain PyTorch's errors in some draws, of which the first is what kernels are tried on."""
    errors: dict[str, float] = {}
    first: tuple[Found, Found] | None = None
    for draw in range(DRAWS):
        given = inputs(case, draw)
        want = run(case, torch_teach, given, torch.float64)
        assert all(float(x.abs().max()) < MOST for x in want.values() if x.numel()), "rates that settle"
        with products(case.dtype):
            plain = run(case, torch_teach, given, case.dtype)
        errors |= {name: max(errors.get(name, 0.0), rms(plain[name], x)) for name, x in want.items()}
        first = first or (given, want)
    assert first is not None, "there are draws"
    return Expected(*first, errors)


def compared(case: Case, teach: Teach, wanted: Expected | None = None) -> dict[str, tuple[float, float]]:
    """(error, plain PyTorch's), root mean squares from float64, by the name of a result or gradient."""
    wanted = wanted or expected(case)
    with poisoned():
        got = run(case, teach, wanted.given, case.dtype)
    assert {name: x.shape for name, x in got.items()} == {name: x.shape for name, x in wanted.want.items()}
    return {name: (rms(got[name], x), wanted.errors[name]) for name, x in wanted.want.items()}


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

    def work() -> None:
        kept, kept_moment, after, after_moment, raw = module.sweep(given, known, moment)
        rows, rows_moment, *_ = module.go_back(given, kept, raw, kept_grad, None, after, after_moment)
        module.lessons(given, kept, kept_moment, raw, rows, rows_moment)

    return work


def rms(got: Tensor, want: Tensor) -> float:
    """The root mean square difference; NaN wherever there is one."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0


@contextmanager
def products(dtype: torch.dtype) -> Iterator[None]:
    """PyTorch's products of fp32 on a GPU are of TF32 for inputs of 16 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype.itemsize == 2
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
