"""What must come out of a launch of matrix states, in float64, for some heads; and how far from it rounding alone may lead.

Rounding is that of a kernel in chunks, as `attnc verify` measures by (codegen/verify/state_formulas.py). An error may be twice
that, as for softmaxes (exact.py). Compared are the heads of the first and the last sequence that the first head of q, k or v
serves, and those that the last one serves, with their first tokens: what comes behind changes neither their results nor, where
nothing is asked of it, their gradients.

Legend: N tokens of a sequence that are compared; H heads; K, V widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.bench.exact import FACTOR, Answer, Found, rms
from attnc.bench.states import StatesWork
from attnc.codegen.verify.state_cases import NAMES, Case
from attnc.codegen.verify.state_formulas import formula, in_chunks
from attnc.compiler.families import Recurrence

COMPARED = 1024
"""Tokens of a sequence that are compared: in float64, one after another, thousands would take longer than the timing."""


@dataclass(frozen=True)
class Part:
    """The heads that are compared: states `first`..`last` (both included) of a sequence."""

    sequence: int
    first: int
    last: int

    def of(self, x: Tensor, work: StatesWork) -> Tensor:
        """Their part of a tensor of all tokens, [N, heads, ...]."""
        size = len(x) // work.sequences
        begin, ratio = self.sequence * size, work.launch.heads // x.shape[1]
        return x[begin : begin + min(size, COMPARED), self.first // ratio : self.last // ratio + 1]


def answer(work: StatesWork) -> Answer:
    """Computes both."""
    exact, rounded = (_found(work, exactly) for exactly in (True, False))
    allowed = {name: FACTOR * rms(rounded[name], want) for name, want in exact.items()}
    return Answer(parts(work), exact, allowed, None if work.o_grad is None else only(work, work.o_grad))


def only(work: StatesWork, o_grad: Tensor) -> Tensor:
    """`o_grad` [T, H, V] with zeros behind the tokens that are compared."""
    size = len(o_grad) // work.sequences
    place = torch.arange(len(o_grad), device=o_grad.device) % max(size, 1)
    return torch.where((place < COMPARED)[:, None, None], o_grad, 0)


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


def _found(work: StatesWork, exactly: bool) -> Found:
    """In float64, token by token, or as a kernel rounds."""
    wide = torch.float64 if exactly else torch.float32
    results: dict[str, list[Tensor]] = {}
    for part in parts(work):
        leaves = {
            name: part.of(x, work).to(wide).requires_grad_(work.o_grad is not None)
            for name, x in {"q": work.q, "k": work.k, "v": work.v, **work.gates}.items()
        }
        heads, here = slice(part.first, part.last + 1), slice(part.sequence, part.sequence + 1)
        given = {name: leaves.get(name) for name in NAMES}
        if work.decay is not None and work.decay.dim() == 1:
            given["decay"] = work.decay[heads]
        states = {"before": work.before, "sum_before": work.total}
        given |= {name: None if x is None else x[here, heads] for name, x in states.items()}
        case = _case(work, leaves)
        o = (formula if exactly else in_chunks)(case, given, wide)["o"]
        results.setdefault("o", []).append(o.detach())
        if work.o_grad is not None:
            grads = torch.autograd.grad(o, list(leaves.values()), part.of(work.o_grad, work).to(wide))
            for name, grad in zip(leaves, grads, strict=True):
                results.setdefault(name, []).append(grad)
    of_tokens = {"o", "q", "k", "v"}
    stored = {name: work.q.dtype if not exactly and name in of_tokens else wide for name in results}
    return {name: _joined(found).to(stored[name]) for name, found in results.items()}


def _case(work: StatesWork, leaves: dict[str, Tensor]) -> Case:
    """The states that are compared, as a call of their own."""
    n, scan = work.launch.numbers, work.launch.scan
    heads = n.heads // min(n.q_heads, n.k_heads, n.v_heads)
    kernel = Recurrence(
        decay="head" if scan.decay is not None else "none" if n.decay is None else "vector" if n.decay else "scalar",
        update="delta" if work.launch.delta else "add",
        erase="vector" if n.erase else "scalar",
        write="vector" if n.write else "scalar",
        normalize=scan.normalize,
        key_width=n.key_width,
        value_width=n.value_width,
    )
    first, second, third = (heads // leaves[name].shape[1] for name in "qkv")
    sizes, device = (len(leaves["q"]),), str(work.q.device)
    shares = first, second, third
    return Case(kernel, sizes, heads, shares, scale=float(scan.scale), dtype=work.q.dtype, device=device)
