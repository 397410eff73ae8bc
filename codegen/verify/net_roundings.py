"""The measure of kernels of fast weights: the formula in their own roundings. And the draws that both sides are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnc.codegen.verify.report import LIMIT
from attnc.runtime.fast import Teach
from attnc.runtime.fast_sweep import Swept, torch_sweep
from attnc.runtime.fast_torch import teach_by, torch_teach

DRAWS = 3
"""Of few numbers one draw says little: what is too far off by one is judged by the errors of both sides over as many."""

Found = dict[str, Tensor]
Errors = dict[str, tuple[float, float]]
"""(a kernel's, the measure's), root mean squares from float64, by the name of a result or gradient."""

MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


def tf32(x: Tensor) -> Tensor:
    """fp32 numbers rounded to the 11 significant bits that TF32 holds."""
    mantissa, exponent = torch.frexp(x)
    found: Tensor = torch.ldexp((mantissa * 2.0**11).round() * 2.0**-11, exponent)
    return found


class _Product(torch.autograd.Function):
    """a @ b of operands in TF32, summed in fp32; so are gradients."""

    @staticmethod
    def forward(context: Any, a: Tensor, b: Tensor) -> Tensor:
        context.save_for_backward(a, b)
        return tf32(a) @ tf32(b)

    @staticmethod
    def backward(context: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        grad = tf32(grads[0])
        a, b = (tf32(x).transpose(-1, -2) for x in context.saved_tensors)
        return grad @ b, a @ grad


class _Rounded(TorchFunctionMode):
    """Products of matrices are those of TF32, on any device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _Product.apply(*args) if func in MATMULS else func(*args, **(kwargs or {}))  # type: ignore[no-untyped-call]


def _sweep(*given: Any) -> Swept:
    with _Rounded():
        return torch_sweep(*given)


def measure_of(dtype: torch.dtype) -> Teach:
    """The formula with the products of kernels: what goes from chunk to chunk in TF32 where q, k and v have 16 bits."""
    return teach_by(_sweep) if dtype.itemsize == 2 else torch_teach


@dataclass(frozen=True, eq=False)
class Expected:
    """Of a draw: what comes in; what must come out, in float64; and how far off the measure is, by the name of a result."""

    given: Any
    want: Found
    errors: dict[str, float]


class Draws:
    """What is expected of the draws of a case, each found when it is first asked for."""

    def __init__(self, of: Callable[[int], Expected]) -> None:
        self.of, self.known = of, dict[int, Expected]()

    def expected(self, draw: int) -> Expected:
        """Of one draw."""
        if draw not in self.known:
            self.known[draw] = self.of(draw)
        return self.known[draw]

    def compared(self, run: Callable[[Any], Found]) -> Errors:
        """Errors of what `run` makes of what comes in: of the first draw, or of all where that is not right."""
        errors = self._pooled(run, 1)
        right = all(ours <= LIMIT * theirs for ours, theirs in errors.values())
        return errors if right else self._pooled(run, DRAWS)

    def _pooled(self, run: Callable[[Any], Found], draws: int) -> Errors:
        squares: dict[str, list[tuple[float, float]]] = {}
        for wanted in map(self.expected, range(draws)):
            got = run(wanted.given)
            assert {name: x.shape for name, x in got.items()} == {name: x.shape for name, x in wanted.want.items()}
            for name, x in wanted.want.items():
                squares.setdefault(name, []).append((rms(got[name], x) ** 2, wanted.errors[name] ** 2))
        means = {name: [sum(side) / draws for side in zip(*both, strict=True)] for name, both in squares.items()}
        return {name: (ours**0.5, theirs**0.5) for name, (ours, theirs) in means.items()}


def rms(got: Tensor, want: Tensor) -> float:
    """The root mean square difference; NaN wherever there is one."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0
