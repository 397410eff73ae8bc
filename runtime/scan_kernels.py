"""The generated kernels of a launch of matrix states as operators of PyTorch, with their gradients.

They are `torch.ops.attnc.states_HASH_scan` and `..._scan_backward`, HASH of the kernel files' texts: folders that hold the same
kernels share them. The way back computes the states before each chunk anew, so that training keeps what came in and went out.

Legend: T new tokens of S sequences; H heads with a state each; K, V its rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .batch import Batch
from .operators import NAMESPACE, dense, device_of
from .recurrence import Scan, States, Steps
from .sizes import DECODE_TOKENS

FILES = (
    "scan_chunks",
    "scan_forward",
    "scan_outputs",
    "scan_step",
    "scan_backward",
    "scan_values",
    "scan_gradients",
    "scan_flows",
)
"""A launch's kernel files; `scan_chunks` is there for the delta rule and tokens' decays, `scan_flows` where channels decay,
`scan_values` without the delta rule.
"""

GIVEN = (
    "Tensor q, Tensor k, Tensor v, Tensor? decay, Tensor? erase, Tensor? write, Tensor offsets, int heads, float scale, "
    "SymInt max_new, Tensor? before, Tensor? sum_before"
)
SCHEMAS = {
    "scan": f"({GIVEN}, bool keep) -> (Tensor o, Tensor after, Tensor sum_after, Tensor norms)",
    "scan_backward": f"({GIVEN}, Tensor o, Tensor norms, Tensor o_grad, Tensor after_grad, Tensor sum_after_grad) -> Tensor[]",
}
"""What the operators take: a `Given`, and states before. keep: whether there will be gradients; else a few tokens go one by
one. They give no sums, and no norms (sums of weights [T, H]), where outputs are not divided by them.
"""

Modules = Mapping[str, ModuleType]


class Given(NamedTuple):
    """What kernel files read of a launch's `Steps` (recurrence.py), in fp32 but for q, k and v; and where sequences lie.

    offsets  [S + 1] int64; max_new: at least the most new tokens of a sequence
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    erase: Tensor | None
    write: Tensor | None
    offsets: Tensor
    heads: int
    scale: float
    max_new: int


def scan_kernels(files: Sequence[ModuleType]) -> Scan:
    """The provider `triton`, a `Scan` (recurrence.py), of a launch's kernel files."""
    modules = {next(name for name in FILES if file.__name__.rpartition(".")[2].startswith(name)): file for file in files}
    operator = define(name_of(modules), modules)

    def scan(steps: Steps, before: States | None, batch: Batch) -> tuple[Tensor, States]:
        if steps.q.dtype == torch.float64:
            raise ValueError("generated kernels have no float64: use('torch')")
        gates = [None if x is None else x.float() for x in (steps.decay, steps.erase, steps.write)]
        held = (None, None) if before is None else (before.matrix, before.sum)
        given = (steps.q, steps.k, steps.v, *gates, batch.offsets, steps.heads, steps.scale, batch.max_new)
        tensors = (x for x in (*given[:6], *held) if isinstance(x, Tensor))
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        o, after, sum_after, _ = operator(*given, *held, keep)
        return o, States(after, sum_after if steps.normalize else None)

    return scan


def name_of(modules: Modules) -> str:
    """A name for the operators of these kernel files: of their texts, and of this one, which knows what operators take."""
    texts = [Path(str(file)).read_bytes() for file in (*(module.__file__ for module in modules.values()), __file__)]
    return "states_" + hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def define(name: str, modules: Modules) -> Any:
    """The operator `name`_scan; the first that asks for a name defines it, for the life of the process."""
    if not hasattr(torch.ops.attnc, f"{name}_scan"):
        functions: dict[str, Callable[..., Any]] = {"scan": _scan(modules), "scan_backward": _scan_backward(modules)}
        fakes: dict[str, Callable[..., Any]] = {"scan": _fake_scan(modules), "scan_backward": _fake_backward}
        for kind, schema in SCHEMAS.items():
            title = f"{NAMESPACE}::{name}_{kind}"
            torch.library.define(title, schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(title, "default", functions[kind])
            torch.library.register_fake(title, fakes[kind])
        backward = getattr(torch.ops.attnc, f"{name}_scan_backward").default
        torch.library.register_autograd(f"{NAMESPACE}::{name}_scan", _gradients(backward), setup_context=_save)
        torch.library.register_autograd(f"{NAMESPACE}::{name}_scan_backward", _no_second_derivative)
    return getattr(torch.ops.attnc, f"{name}_scan").default


def _given(parts: Sequence[Any]) -> Given:
    """The arguments of an operator as kernels read them: rows of q, k and v dense, all else as a whole."""
    q, k, v, *gates, offsets, heads, scale, max_new = parts
    decay, erase, write = (None if x is None else x.contiguous() for x in gates)
    return Given(dense(q), dense(k), dense(v), decay, erase, write, offsets, heads, scale, max_new)


def widened(modules: Modules, given: Given, held: Sequence[Tensor | None]) -> tuple[Given, list[Any]]:
    """With as many key channels as the chunks' kernels have, zeros: rows of an odd width would be read number by number.

    held  states [S, H, K, V] and sums of keys [S, H, K], or their gradients, or None
    """
    more = modules["scan_forward"].KEY_WIDTH - given.q.shape[-1]
    if more == 0:
        return given, list(held)

    def wide(x: Any) -> Any:
        return x if x is None or x.dim() < 3 else pad(x, (0, 0, 0, more) if x.dim() == 4 else (0, more))

    q, k, decay, erase = (wide(x) for x in (given.q, given.k, given.decay, given.erase))
    return given._replace(q=q, k=k, decay=decay, erase=erase), [wide(x) for x in held]


def _narrow(x: Any, width: int) -> Any:
    """Of states [S, H, K, V] or rows of keys [T, H, K] the channels that were given."""
    if x is None or x.dim() < 3 or x.shape[2] == width:
        return x
    return x[:, :, :width].contiguous()


def _prepared(modules: Modules, given: Given) -> dict[str, Tensor]:
    made: dict[str, Tensor] = modules["scan_chunks"].prepare(given) if "scan_chunks" in modules else {}
    return made


def _scan(modules: Modules) -> Callable[..., tuple[Tensor, ...]]:
    """The operator `scan`: chunk by chunk, or token by token."""

    def scan(*parts: Any) -> tuple[Tensor, ...]:
        *parts, before, sum_before, keep = parts  # type: ignore[assignment]
        given = _given(parts)
        held = [None if x is None else x.contiguous() for x in (before, sum_before)]
        with device_of(given.q):
            if given.max_new <= DECODE_TOKENS and not keep:
                o, after, sum_after = modules["scan_step"].step(given, *held)
                norms = None
            else:
                width = given.q.shape[-1]
                given, held = widened(modules, given, held)
                made = _prepared(modules, given)
                kept = modules["scan_forward"].scan(given, made, *held)
                o, norms = modules["scan_outputs"].outputs(given, made, kept)
                after, sum_after = (_narrow(x, width) for x in kept[-2:])
        found = (sum_after, norms if keep else None)
        return o, after, *(after.new_empty(0) if x is None else x for x in found)

    return scan


def _scan_backward(modules: Modules) -> Callable[..., list[Tensor]]:
    """The operator `scan_backward`: gradients in the order of what is given, empty where there is nothing."""

    def scan_backward(*parts: Any) -> list[Tensor]:
        *parts, before, sum_before, o, norms, o_grad, after_grad, sum_after_grad = parts  # type: ignore[assignment]
        given = _given(parts)
        held = [None if x is None else x.contiguous() for x in (before, sum_before)]
        width = given.q.shape[-1]
        given, (*held, after_wide, sum_wide) = widened(modules, given, (*held, after_grad, sum_after_grad))
        grads = o_grad.contiguous(), after_wide.contiguous(), sum_wide.contiguous()
        norms, deltas = (norms, of_norms(o, norms, grads[0])) if norms.numel() else (None, None)
        with device_of(given.q):
            made = _prepared(modules, given)
            kept = modules["scan_forward"].scan(given, made, *held)
            back = modules["scan_backward"].go_back(given, made, norms, deltas, *grads, kept[3])
            found = modules["scan_gradients"].gradients(given, made, norms, deltas, grads[0], held[0], grads[1], kept, back)
            before_grad, sum_grad, _, _, v_grad, write_grad, _ = back
            if "scan_values" in modules:
                v_grad = modules["scan_values"].values(given, made, norms, grads[0], back)
            del made, kept, back  # states before all chunks, and their gradients, are most of what a step holds
            if "scan_flows" in modules:
                found = modules["scan_flows"].unfold(given, found)
        rows = (_shared(x, grad) for x, grad in ((given.q, found["q"]), (given.k, found["k"]), (given.v, v_grad)))
        gates = (given.decay, found.get("decay")), (given.erase, found.get("erase")), (given.write, write_grad)
        q_grad, k_grad, v_grad = rows
        decay_grad, erase_grad, write_grad = (_summed(*gate) for gate in gates)
        of_keys = q_grad, k_grad, decay_grad, erase_grad, before_grad, sum_grad
        q_grad, k_grad, decay_grad, erase_grad, *states = (_narrow(x, width) for x in of_keys)
        results = q_grad, k_grad, v_grad, decay_grad, erase_grad, write_grad, *states
        return [after_grad.new_empty(0) if x is None else x for x in results]

    return scan_backward


def of_norms(o: Tensor, norms: Tensor, o_grad: Tensor) -> Tensor:
    """The gradients of sums of weights [T, H], by which outputs were divided."""
    taken = -(o_grad.float() * o.float()).sum(-1)
    return torch.where(norms != 0, taken / torch.where(norms != 0, norms, 1.0), 0.0)


def _shared(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x [T, Q, D], of which each head serves neighbouring states, from those of the states [T, H, D]."""
    tokens, heads, width = x.shape
    if grad.shape[1] == heads:
        return grad
    return grad.view(tokens, heads, grad.shape[1] // heads, width).sum(2).to(x.dtype)


def _summed(gate: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """The gradient of a gate, from parts of it along the first axis."""
    if gate is None or grad is None or grad.shape == gate.shape:
        return grad
    whole = grad.sum(0)
    return whole if whole.shape == gate.shape else whole.sum(0, dtype=torch.float64).float()  # tokens are many, heads few


def _fake_scan(modules: Modules) -> Callable[..., tuple[Tensor, ...]]:
    """Results without numbers: what compilers ask for."""
    normalize = modules["scan_forward"].NORMALIZE

    def fake(*parts: Any) -> tuple[Tensor, ...]:
        q, _, v, _, _, _, offsets, heads, _, _, _, _, keep = parts
        sequences, tokens = offsets.shape[0] - 1, q.shape[0]
        after = q.new_empty(sequences, heads, q.shape[2], v.shape[2], dtype=torch.float32)
        sums = after.new_empty(sequences, heads, q.shape[2]) if normalize else after.new_empty(0)
        norms = after.new_empty(tokens, heads) if normalize and keep else after.new_empty(0)
        return q.new_empty(tokens, heads, v.shape[2]), after, sums, norms

    return fake


def _fake_backward(*parts: Any) -> list[Tensor]:
    q, k, v, decay, erase, write, *_, after_grad, sum_after_grad = parts
    tensors = (q, k, v, decay, erase, write, after_grad, sum_after_grad)
    return [
        after_grad.new_empty(0 if x is None else x.shape, dtype=after_grad.dtype if x is None else x.dtype) for x in tensors
    ]


def _save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    *tensors, offsets, heads, scale, max_new, before, sum_before, _ = inputs
    o, _, _, norms = output
    ctx.numbers = heads, scale, max_new
    ctx.save_for_backward(*tensors, offsets, before, sum_before, o if norms.numel() else norms, norms)
    ctx.mark_non_differentiable(norms)


def _gradients(backward: Any) -> Callable[..., tuple[Any, ...]]:
    """Gradients of all tensors but the offsets, from those of the outputs and the states after."""

    def gradients(ctx: Any, o_grad: Tensor, after_grad: Tensor, sum_after_grad: Tensor, _: object) -> tuple[Any, ...]:
        *tensors, offsets, before, sum_before, o, norms = ctx.saved_tensors
        states = before, sum_before
        grads = backward(*tensors, offsets, *ctx.numbers, *states, o, norms, o_grad, after_grad, sum_after_grad)
        found = [None if x is None else grad for x, grad in zip((*tensors, *states), grads, strict=True)]
        return *found[:6], None, None, None, None, *found[6:], None

    return gradients


def _no_second_derivative(*_anything: object) -> None:
    raise RuntimeError("the generated kernels have no second derivative: use('torch') or use('reference')")
