"""The generated kernels of one launch as operators of PyTorch, so that torch.compile, checkpointing and autograd know them.

They are `torch.ops.attnc.NAME_attend`, `NAME_backward_queries`, `NAME_backward_keys`, with NAME from the texts of the kernels
(`name_of`): folders that hold the same kernels share them. They are registered by the functions of `torch.library` one by one:
`custom_op` is these and a look for aliases at every call's results, which costs 8 us a call more.

Legend: T new tokens of S sequences; H query heads, G KV heads; D, E key, value width; R numbers of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .gradients import backward, save
from .intervals import Form
from .sizes import DECODE_TOKENS

NAMESPACE = "attnc"

COMMON = (
    "Tensor q, Tensor k, Tensor v, Tensor scale, Tensor rows, Tensor[] places, SymInt[] sizes, "
    "bool rings, bool shared, float? cap"
)
SCHEMAS = {
    "attend": f"({COMMON}, Tensor? sink_logit) -> (Tensor o, Tensor lse)",
    "backward_queries": f"({COMMON}, Tensor o, Tensor lse, Tensor o_grad, Tensor lse_grad) -> (Tensor q_grad, Tensor delta)",
    "backward_keys": f"({COMMON}, Tensor lse, Tensor delta, Tensor o_grad) -> (Tensor k_grad, Tensor v_grad)",
}
"""What the operators take. Shapes are those of a `Kernel` (softmax.py); k and v are flat; `places`: the tensors of `Part` from
`offsets` to `ring`, `sizes`: its numbers from `k_stride` to `max_slots`.
"""

Function = Callable[..., tuple[Tensor, Tensor]]


class Part(NamedTuple):
    """What kernels read of a `KeyPart` (keys.py) and of a `Batch` (batch.py), both in one; names as there."""

    k: Tensor
    v: Tensor
    offsets: Tensor
    past: Tensor
    k_begin: Tensor
    v_begin: Tensor
    stored: Tensor
    base: Tensor
    pinned: Tensor
    ring: Tensor
    k_stride: int
    v_stride: int
    max_new: int
    max_stored: int
    max_slots: int
    rings: bool
    shared: bool
    v_width: int


@dataclass(frozen=True)
class Functions:
    """The functions of a launch's kernel files: many new queries of a sequence run `prefill`, a few run `decode`.

    backward_queries  (..., cap, o, lse, o_grad, lse_grad) -> q_grad [T, H, D], delta [T, H]
    backward_keys     (..., cap, lse, delta, o_grad) -> k_grad, v_grad, flat as the part's k and v
    """

    prefill: Function
    decode: Function
    backward_queries: Function
    backward_keys: Function


class Operators(NamedTuple):
    """What `define` registered."""

    attend: Any
    backward_queries: Any
    backward_keys: Any


def name_of(files: Sequence[str]) -> str:
    """A name for the operators of these kernel files: of their texts, and of this one, which knows what operators take."""
    texts = [Path(file).read_bytes() for file in (*files, __file__)]
    return "softmax_" + hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def define(name: str, functions: Functions, form: Form, v_width: int, exponent: float | None) -> Operators:
    """The operators called `name`; the first that asks for a name defines it, for the life of the process."""
    if not hasattr(torch.ops.attnc, f"{name}_attend"):
        impls = _implementations(functions, form, v_width)
        for kind, schema in SCHEMAS.items():
            title = f"{NAMESPACE}::{name}_{kind}"
            torch.library.define(title, schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(title, "default", impls[kind])
            torch.library.register_fake(title, _fakes(v_width, exponent)[kind])
        gradients = Operators(*(getattr(torch.ops.attnc, f"{name}_{kind}").default for kind in SCHEMAS))
        torch.library.register_autograd(f"{NAMESPACE}::{name}_attend", backward(gradients, exponent), setup_context=save)
        for kind in ("backward_queries", "backward_keys"):
            torch.library.register_autograd(f"{NAMESPACE}::{name}_{kind}", _no_second_derivative)
    return Operators(*(getattr(torch.ops.attnc, f"{name}_{kind}").default for kind in SCHEMAS))


def _implementations(functions: Functions, form: Form, v_width: int) -> dict[str, Function]:
    """The operators' functions, which take a schema's arguments in order."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, scale: Tensor, rows: Tensor, places: list[Tensor], sizes: list[int],
        rings: bool, shared: bool, cap: float | None, sink_logit: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        q, k, v = dense(q), k.contiguous(), v.contiguous()
        part = Part(k, v, *places, *sizes, rings, shared, v_width)  # type: ignore[call-arg, arg-type]
        run = functions.decode if part.max_new <= DECODE_TOKENS else functions.prefill
        with device_of(q):
            return run(q, part, rows, form, part, scale, cap, sink_logit)

    def later(run: Function) -> Function:
        def gradient(
            q: Tensor, k: Tensor, v: Tensor, scale: Tensor, rows: Tensor, places: list[Tensor], sizes: list[int],
            rings: bool, shared: bool, cap: float | None, *results: Tensor,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            q, k, v = dense(q), k.contiguous(), v.contiguous()
            part = Part(k, v, *places, *sizes, rings, shared, v_width)  # type: ignore[call-arg, arg-type]
            with device_of(q):
                return run(q, part, rows, form, part, scale, cap, *results)

        return gradient

    return {
        "attend": attend,
        "backward_queries": later(functions.backward_queries),
        "backward_keys": later(functions.backward_keys),
    }


def at_once(*tensors: Tensor) -> bool:
    """Whether nothing but numbers is asked of a launch, so that its function may run by itself: no gradients, no compiler, no
    mode that looks at operators, plain tensors. PyTorch's way to an operator of so many arguments takes as long as the launch.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(x) is Tensor for x in tensors)


def dense(q: Tensor) -> Tensor:
    """q with a dense last axis, which kernels read; other strides they are given."""
    return q if q.stride(-1) == 1 else q.contiguous()


def device_of(x: Tensor) -> AbstractContextManager[Any]:
    """The context in which Triton launches on x's device: it takes the current one."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def _fakes(v_width: int, exponent: float | None) -> dict[str, Function]:
    """Results without numbers: what compilers ask for."""
    sums, more = ((), ()) if exponent is None else ((2,), (2,) if exponent else ())

    def attend(q: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape[0], q.shape[1], v_width), q.new_empty(*q.shape[:2], *sums, dtype=torch.float32)

    def backward_queries(q: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape), q.new_empty(*more, *q.shape[:2], dtype=torch.float32)

    def backward_keys(_q: Tensor, k: Tensor, v: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
        return k.new_empty(k.shape), v.new_empty(v.shape)

    return {"attend": attend, "backward_queries": backward_queries, "backward_keys": backward_keys}


def _no_second_derivative(*_anything: object) -> None:
    raise RuntimeError("the generated kernels have no second derivative: use('torch') or use('reference')")
