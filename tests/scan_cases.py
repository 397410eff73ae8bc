"""Launches of matrix states: the formula token by token, inputs, and how far off a kernel may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from types import SimpleNamespace

import torch
from torch import Tensor

from attnc.compiler.families import Recurrence
from attnc.runtime.recurrence import Scan, States, Steps

Given = dict[str, Tensor | None]

LIMIT = 1.5
SCALE = 0.25
NAMES = ("q", "k", "v", "decay", "erase", "write", "before", "sum_before")


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


def inputs(case: Case) -> Given:
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


def formula(case: Case, given: Given, dtype: torch.dtype) -> dict[str, Tensor]:
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


def launched(case: Case, given: Given) -> tuple[Steps, States | None, SimpleNamespace]:
    """What a provider of matrix states is given."""
    offsets = torch.tensor([0, *accumulate(case.sizes)], device=case.device)
    batch = SimpleNamespace(offsets=offsets, max_new=max(case.sizes))
    before = None if given["before"] is None else States(given["before"], given["sum_before"])
    steps = Steps(*(given[name] for name in NAMES[:6]), case.heads, SCALE, case.kernel.normalize)
    return steps, before, batch


def outer(case: Case, draw: int = 0) -> dict[str, Tensor]:
    """Gradients of the results, by their names."""
    kernel, heads, sequences = case.kernel, case.heads, len(case.sizes)
    generator = torch.Generator().manual_seed(case.seed + 100 + draw)
    shapes = {
        "o": (sum(case.sizes), heads, kernel.value_width),
        "after": (sequences, heads, kernel.key_width, kernel.value_width),
    }
    shapes |= {"sum_after": (sequences, heads, kernel.key_width)} if kernel.normalize else {}
    found = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    found = {name: x.round() if case.integers else x for name, x in found.items()}
    return {name: x.to(case.dtype if name == "o" else torch.float32).to(case.device) for name, x in found.items()}


def gradients(results: dict[str, Tensor], leaves: Given, outers: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The gradients of all that is given, for each of the gradients of results."""
    names = [name for name in NAMES if leaves[name] is not None]
    found = []
    for one in outers:
        loss = [results[name] for name in one], [x.to(results[name].dtype) for name, x in one.items()]
        grads = torch.autograd.grad(loss[0], [leaves[name] for name in names], loss[1], retain_graph=True)
        found.append(dict(zip(names, grads, strict=True)))
    return found


def leaves_of(given: Given, dtype: torch.dtype | None = None) -> Given:
    """The same numbers, of which there will be gradients."""
    return {name: None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for name, x in given.items()}


@dataclass(frozen=True)
class Expected:
    """What must come out, and how far off the formula is in the kernel's precision: results and gradients by name.

    Of few numbers the formula's error is the worst of several draws: of inputs, or of what the gradients of results are.
    """

    given: Given
    want: dict[str, Tensor]
    errors: dict[str, float]


def expected(case: Case, own: Callable[..., dict[str, Tensor]] | None = None) -> Expected:
    """Results as they are named, gradients as `name_grad`; `own` is the formula in the kernel's precision, by itself fp32."""
    given = inputs(case)
    outers = [outer(case, draw) for draw in range(6)]
    sides = []
    for dtype, one in ((torch.float64, formula), (torch.float32, own or formula)):
        leaves = leaves_of(given, dtype)
        results = one(case, leaves, dtype)
        results = {name: results[name] for name in outers[0]}
        plain = {name: x.detach() for name, x in results.items()}
        sides.append([plain | {f"{name}_grad": x for name, x in draw.items()} for draw in gradients(results, leaves, outers)])
    exact, rounded = sides
    errors = {}
    for name, want in exact[0].items():
        draws = len(outers) if want.numel() < FEW else 1
        kind = case.dtype if name.removesuffix("_grad") in ("q", "k", "v", "o") else torch.float32
        errors[name] = max(rms(rounded[n][name].to(kind), exact[n][name]) for n in range(draws))
    few = [name for name in outers[0] if exact[0][name].numel() < FEW // 8]
    for draw in range(1, 5) if few else ():
        other = replace(case, seed=case.seed + draw)
        one, another = (formula(other, leaves_of(inputs(other), dtype), dtype) for dtype in (torch.float64, torch.float32))
        errors |= {name: max(errors[name], rms(another[name].detach(), one[name].detach())) for name in few}
    return Expected(given, exact[0], errors)


def run(case: Case, scan: Scan, given: Given, back: bool = True) -> dict[str, Tensor]:
    """A provider's results and, going back, their gradients."""
    leaves = leaves_of(given) if back else given
    o, after = scan(*launched(case, leaves))
    results = {"o": o, "after": after.matrix} | ({} if after.sum is None else {"sum_after": after.sum})
    found = {name: x.detach() for name, x in results.items()}
    if back:
        found |= {f"{name}_grad": x for name, x in gradients(results, leaves, [outer(case)])[0].items()}
    return found


FEW = 2048
"""Of fewer numbers one draw says little: behind deep gates a few of them make all of the error."""


def rms(got: Tensor, want: Tensor) -> float:
    """The root mean square difference; NaN wherever there is one."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0


FORMS = {
    "plain": Recurrence(key_width=16, value_width=16),
    "head": Recurrence("head", normalize=True, key_width=16, value_width=20),
    "scalar": Recurrence("scalar", key_width=24, value_width=16),
    "vector": Recurrence("vector", normalize=True, key_width=20, value_width=16),
    "delta": Recurrence("none", "delta", key_width=16, value_width=16),
    "gated_delta": Recurrence("scalar", "delta", key_width=16, value_width=24),
    "strengths_of_channels": Recurrence("head", "delta", "vector", "vector", key_width=20, value_width=20),
    "vector_delta": Recurrence("vector", "delta", "scalar", "vector", key_width=24, value_width=16),
    "vector_erase": Recurrence("vector", "delta", "vector", "scalar", key_width=16, value_width=16),
}
"""Kernels that between them have every hole."""


def check(wanted: Expected, got: dict[str, Tensor], share: float = LIMIT) -> dict[str, float]:
    """Errors beside what is allowed, by name."""
    ratios = {}
    for name, x in got.items():
        assert x.shape == wanted.want[name].shape, name
        assert not x.isnan().any(), name
        error = rms(x, wanted.want[name])
        ratios[name] = error / wanted.errors[name] if error else 0.0
    assert all(ratio <= share for ratio in ratios.values()), ratios
    return ratios


class Stored(torch.autograd.Function):
    """A number as a kernel multiplies it, rounded to a dtype; so is its gradient."""

    @staticmethod
    def forward(context: object, x: Tensor, dtype: torch.dtype) -> Tensor:
        context.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(context.dtype).to(grad.dtype), None


def in_chunks(case: Case, given: Given, dtype: torch.dtype, chunk: int = 64) -> dict[str, Tensor]:
    """The formula by chunks of one sequence after another: operands of products are rounded to the case's dtype, the rest is in
    `dtype`. What a kernel of chunks has to be compared with.
    """
    kernel, heads = case.kernel, case.heads
    x = {name: None if of is None else of.to(dtype) for name, of in given.items()}
    q, k, v = (x[name].repeat_interleave(share, 1) for name, share in zip("qkv", case.shares, strict=True))
    decay = torch.zeros(len(q), heads, 1, dtype=dtype, device=q.device)
    if x["decay"] is not None:
        decay = x["decay"] if kernel.decay == "vector" else x["decay"].expand(len(q), heads)[..., None]

    def stored(*several: Tensor) -> list[Tensor]:
        return [Stored.apply(one, case.dtype) for one in several]

    outs, states, sums, begin = [], [], [], 0
    for sequence, size in enumerate(case.sizes):
        zeros = q.new_zeros(heads, kernel.key_width, kernel.value_width)
        state = zeros if x["before"] is None else x["before"][sequence]
        total = zeros[..., 0] if x["sum_before"] is None else x["sum_before"][sequence]
        for first in range(begin, begin + size, chunk):
            rows = slice(first, min(first + chunk, begin + size))
            g = decay[rows].double().cumsum(0)
            apart = (g[:, None] - g[None, :]).clamp(max=0).to(dtype).exp()  # [i, j, H, K or 1]
            since, until = g.to(dtype).exp(), (g[-1] - g).to(dtype).exp()
            lower = torch.ones(len(g), len(g), device=q.device, dtype=dtype).tril()[..., None]
            query, key, value = q[rows], k[rows], v[rows]
            pairs = torch.einsum("ihk,jhk,ijhk->ijh", query, key, apart.expand(-1, -1, -1, key.shape[-1])) * lower
            held = Stored.apply(state, case.dtype)
            if kernel.update == "delta":
                erase, write = (of[rows] if of.dim() == 3 else of[rows][..., None] for of in (x["erase"], x["write"]))
                erased = torch.einsum("ihk,jhk,ijhk->ijh", erase * key, key, apart.expand(-1, -1, -1, key.shape[-1]))
                eye = torch.eye(len(g), dtype=dtype, device=q.device)
                strict = erased * (lower - eye[..., None])
                inverse = torch.linalg.solve_triangular(eye + strict.permute(2, 0, 1), eye, upper=False, unitriangular=True)
                right = write * value - torch.einsum("ihk,hkv->ihv", *stored(erase * key * since), held)
                value = torch.einsum("hij,jhv->ihv", *stored(inverse.expand(heads, -1, -1), right))
            value = Stored.apply(value, case.dtype)
            out = torch.einsum("ihk,hkv->ihv", *stored(query * since), held)
            out = out + torch.einsum("ijh,jhv->ihv", *stored(pairs), value)
            if kernel.normalize:
                norm = torch.einsum("ihk,hk->ih", query * since, total) + pairs.sum(1)
                out = out / norm[..., None] / SCALE
                total = total * since[-1] + (key * until).sum(0)
            outs.append(out * SCALE)
            fade = since[-1][..., None]
            state = fade * state + torch.einsum("jhk,jhv->hkv", *stored(key * until), value)
        states.append(state)
        sums.append(total)
        begin += size
    return {"o": torch.cat(outs), "after": torch.stack(states), "sum_after": torch.stack(sums)}
