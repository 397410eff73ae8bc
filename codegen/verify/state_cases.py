"""Inputs for the kernels of matrix states, on any device and in Triton's interpreter alike, and how a launch is run on them.

Legend: T tokens of S sequences; H heads with a state each; K, V widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from attnc.compiler.families import Recurrence
from attnc.runtime.batch import Batch
from attnc.runtime.recurrence import Scan, States, Steps

Given = Mapping[str, Tensor | None]
Results = dict[str, Tensor]

SCALE = 0.25
NAMES = ("q", "k", "v", "decay", "erase", "write", "before", "sum_before")
ELEMENTS = frozenset(("q", "k", "v", "o"))
"""What is in a launch's dtype; the rest is in fp32."""


@dataclass(frozen=True)
class Case:
    """A call: sequences of `sizes`, `heads` states; q, k and v have heads / share of them; gates as deep as `gates` a token.

    before    whether there are states before; scale: what outputs are multiplied by
    integers  small whole numbers; with the delta rule a key is one of the axes, so that what was written there is replaced
    """

    kernel: Recurrence
    sizes: tuple[int, ...]
    heads: int = 2
    shares: tuple[int, int, int] = (1, 1, 1)
    gates: tuple[float, ...] = (0.0, -0.05, -1.0, -50.0)
    before: bool = True
    integers: bool = False
    seed: int = 0
    scale: float = SCALE
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


def words(case: Case) -> str:
    """The case, for a reader."""
    gates = "" if case.kernel.decay == "none" else f", gates down to {min(case.gates):g}"
    return f"{'+'.join(map(str, case.sizes))} tokens{gates}{', states before' if case.before else ''}"


def inputs(case: Case) -> dict[str, Tensor | None]:
    """What tokens bring, and the states before, by NAMES; strengths up to 2, some gates 0, some deep."""
    kernel, tokens, heads = case.kernel, sum(case.sizes), case.heads
    delta = kernel.update == "delta"
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.round().clamp(-1, 1) if case.integers else x

    def keys(share: int, writes: bool) -> Tensor:
        x = normal(tokens, heads // share, kernel.key_width)
        if kernel.normalize:
            return x.abs()
        if case.integers and delta and writes:
            axis = torch.randint(kernel.key_width, x.shape[:2], generator=generator)
            return torch.nn.functional.one_hot(axis, kernel.key_width).double()
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6) if delta and not case.integers else x

    def strengths(kind: str, width: int) -> Tensor | None:
        x = 2 * torch.rand(tokens, heads, *([width] if kind == "vector" else []), generator=generator, dtype=torch.float64)
        x = torch.ones_like(x) if case.integers else x
        return x if delta else None

    decay = None
    if kernel.decay != "none":
        whole = (tokens, heads, kernel.key_width)
        shape = {"head": whole[1:2], "scalar": whole[:2], "vector": whole}[kernel.decay]
        depth = torch.tensor(case.gates, dtype=torch.float64)[torch.randint(len(case.gates), shape, generator=generator)]
        decay = depth * torch.rand(shape, generator=generator, dtype=torch.float64)
    sequences, sums = len(case.sizes), case.before and kernel.normalize
    found = {
        "q": keys(case.shares[0], False),
        "k": keys(case.shares[1], True),
        "v": normal(tokens, heads // case.shares[2], kernel.value_width),
        "decay": decay,
        "erase": strengths(kernel.erase, kernel.key_width),
        "write": strengths(kernel.write, kernel.value_width),
        "before": normal(sequences, heads, kernel.key_width, kernel.value_width) if case.before else None,
        "sum_before": normal(sequences, heads, kernel.key_width).abs() if sums else None,
    }
    return {
        name: x if x is None else x.to(case.dtype if name in ELEMENTS else torch.float32).to(case.device)
        for name, x in found.items()
    }


def launched(case: Case, given: Given, phase: str = "prefill") -> tuple[Steps, States | None, Batch]:
    """What a provider of matrix states is given."""
    places = torch.zeros(1, sum(case.sizes), dtype=torch.int64, device=case.device)
    _, batch = Batch.of(places, offsets=[0, *accumulate(case.sizes)], phase=phase)
    q, k, v, decay, erase, write, before, sum_before = (given[name] for name in NAMES)
    assert q is not None
    assert k is not None
    assert v is not None
    steps = Steps(q, k, v, decay, erase, write, case.heads, case.scale, case.kernel.normalize)
    return steps, None if before is None else States(before, sum_before), batch


def outer(case: Case, draw: int = 0) -> Results:
    """Gradients of the results, by their names."""
    kernel, heads, sequences = case.kernel, case.heads, len(case.sizes)
    generator = torch.Generator().manual_seed(case.seed + 100 + draw)
    shapes: dict[str, tuple[int, ...]] = {
        "o": (sum(case.sizes), heads, kernel.value_width),
        "after": (sequences, heads, kernel.key_width, kernel.value_width),
    }
    shapes |= {"sum_after": (sequences, heads, kernel.key_width)} if kernel.normalize else {}
    found = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    found = {name: x.round().clamp(-1, 1) if case.integers else x for name, x in found.items()}
    return {name: x.to(case.dtype if name in ELEMENTS else torch.float32).to(case.device) for name, x in found.items()}


def gradients(results: Results, leaves: Given, outers: Sequence[Results]) -> list[Results]:
    """The gradients of all that is given, for each of the gradients of results."""
    asked = {name: x for name in NAMES if (x := leaves[name]) is not None}
    found = []
    for one in outers:
        ends, starts = [results[name] for name in one], [x.to(results[name].dtype) for name, x in one.items()]
        grads = torch.autograd.grad(ends, list(asked.values()), starts, retain_graph=True)
        found.append(dict(zip(asked, grads, strict=True)))
    return found


def leaves_of(given: Given, dtype: torch.dtype | None = None) -> dict[str, Tensor | None]:
    """The same numbers, of which there will be gradients."""
    return {name: None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for name, x in given.items()}


def run(case: Case, scan: Scan, given: Given, back: bool = True) -> Results:
    """A provider's results and, going back, the gradients of what is given, as `name_grad`."""
    leaves = leaves_of(given) if back else given
    o, after = scan(*launched(case, leaves, "train" if back else "prefill"))
    results = {"o": o, "after": after.matrix} | ({} if after.sum is None else {"sum_after": after.sum})
    found = {name: x.detach() for name, x in results.items()}
    if back:
        found |= {f"{name}_grad": x for name, x in gradients(results, leaves, [outer(case)])[0].items()}
    return found
