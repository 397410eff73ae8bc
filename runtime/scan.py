"""One launch of matrix states: what tokens bring, the states that decoding keeps, and who runs it in which phase.

Legend: T new tokens of S sequences; H heads with a state each; K, V its rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .autocast import cast, enabled, off, word
from .batch import Batch
from .recurrence import Scan, States, Steps
from .storage import LayerCache

Formula = Callable[..., tuple[Tensor, Tensor, Tensor | None]]
"""A reference: q, k, v, decay, erase, write of one sequence, scale, normalize, state and sum -> (o, state, sum)."""


def reference_scan(formula: Formula) -> Scan:
    """The provider `reference`: the formula, one sequence after another; in fp32, in float64 where q is."""

    def scan(steps: Steps, before: States | None, batch: Batch) -> tuple[Tensor, States]:
        wide = torch.promote_types(steps.q.dtype, torch.float32)

        def each(x: Tensor | None) -> list[Any]:
            """A tensor of the tokens in sequences; what all tokens share as often."""
            if x is None or x.dim() == 1:
                return [None if x is None else x.to(wide)] * batch.sequences
            return list(torch.split(x.to(wide), list(batch.sizes)))

        q, k, v = (each(x.repeat_interleave(steps.heads // x.shape[1], dim=1)) for x in (steps.q, steps.k, steps.v))
        decay, erase, write = each(steps.decay), each(steps.erase), each(steps.write)
        outputs, matrices, sums = [], [], list[Tensor]()
        for s in range(batch.sequences):
            state = None if before is None else before.matrix[s].to(wide)
            total = None if before is None or before.sum is None else before.sum[s].to(wide)
            tokens = q[s], k[s], v[s], decay[s], erase[s], write[s]
            o, state, total = formula(*tokens, scale=steps.scale, normalize=steps.normalize, state=state, total=total)
            outputs.append(o)
            matrices.append(state)
            sums += [] if total is None else [total]
        if not outputs:
            nothing = steps.v.new_zeros(0, steps.heads, steps.k.shape[-1], steps.v.shape[-1], dtype=wide)
            return nothing[:, :, 0], States(nothing, nothing[..., 0] if steps.normalize else None)
        return torch.cat(outputs), States(torch.stack(matrices), torch.stack(sums) if steps.normalize else None)

    return scan


class MatrixStates:
    """q [T, Q, K], k [T, any, K], v [T, R, V] with gates -> o [T, H, V]. `providers`: who runs it in each phase.

    decay  logarithms of a decay for each head, where no gate of the token makes it
    causal  false: every token reads the sum of all
    """

    def __init__(
        self,
        name: str,
        heads: int,
        *,
        scale: float,
        formula: Formula,
        normalize: bool = False,
        decay: tuple[float, ...] | None = None,
        causal: bool = True,
    ) -> None:
        self.name, self.heads, self.scale, self.normalize, self.causal = name, heads, scale, normalize, causal
        self.decay, self.reference = decay, reference_scan(formula)
        self.providers: dict[str, Scan] = {}
        self.made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def prepare(self, device: torch.device) -> None:
        """Make what calls on this device read, so that a compiled model finds it made."""
        for dtype in (torch.float32, torch.float64):
            self._fixed(device, dtype)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        cache: LayerCache | None,
        decay: Tensor | None = None,
        erase: Tensor | None = None,
        write: Tensor | None = None,
    ) -> Tensor:
        """Reads the states of the batch's sequences, runs the phase's provider, stores the states after.

        decay [T, H] or [T, H, K], logarithms in fp32, none above 0; erase, write as `Steps` has them. Under `torch.autocast`
        q, k and v are taken in its dtype. Raises ValueError, naming the argument, for shapes and dtypes that do not fit, and on
        a CPU for decays above 0 and for NaN.
        """
        casts = enabled(q)
        if casts:
            q, k, v = cast(q, k, v)
        if decay is None:
            decay = self._fixed(q.device, torch.promote_types(q.dtype, torch.float32))
        steps = Steps(q, k, v, decay, erase, write, self.heads, self.scale, self.normalize)
        check(steps)
        before = None
        if cache is not None and batch.max_past > 0:
            before = States(cache.state("state", batch), cache.state("sum", batch) if self.normalize else None)
            check_states(steps, before, batch)
        with off(q) if casts else nullcontext():
            o, after = self.providers[batch.phase](steps, before, batch)
            if not self.causal:
                o = _whole(steps, after, batch)
        if cache is not None:
            cache.set_state("state", after.matrix, batch)
            if after.sum is not None:
                cache.set_state("sum", after.sum, batch)
        return o.to(q.dtype)

    def _fixed(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The decays of the heads on a device, made once."""
        if self.decay is None:
            return None
        key = device, dtype
        if key in self.made:
            return self.made[key]
        with torch.inference_mode(False):  # a later call may train
            made = torch.tensor(self.decay, dtype=dtype, device=device)
        if not torch.compiler.is_compiling():  # nothing of a compiled graph may outlive it
            self.made[key] = made
        return made


def _whole(steps: Steps, after: States, batch: Batch) -> Tensor:
    """Every token reads the state after its sequence's last one."""
    q = steps.q.to(after.matrix.dtype).repeat_interleave(steps.heads // steps.q.shape[1], dim=1)
    o = torch.einsum("thk,thkv->thv", q, after.matrix[batch.sequence])
    if after.sum is None:
        return o * steps.scale
    mass = torch.einsum("thk,thk->th", q, after.sum[batch.sequence]).unsqueeze(-1)
    return torch.where(mass == 0, 0.0, o / torch.where(mass == 0, 1.0, mass))


def check(steps: Steps) -> None:
    """Raises ValueError, naming the argument, where tensors do not fit each other; values are looked at on a CPU alone, since
    a GPU would have to be waited for.
    """
    tokens, _, rows = steps.q.shape
    columns = steps.v.shape[-1]
    for name, x, width in (("q", steps.q, rows), ("k", steps.k, rows), ("v", steps.v, columns)):
        if x.dim() != 3 or x.shape[0] != tokens or x.shape[2] != width or steps.heads % x.shape[1]:
            raise ValueError(f"{name} is [{tokens}, a divisor of {steps.heads}, {width}], got {list(x.shape)}")
        if x.dtype != steps.q.dtype:
            raise ValueError(
                f"q, k and v have one dtype, or torch.autocast: {name} is {word(x.dtype)}, q {word(steps.q.dtype)}"
            )
    of_head = (steps.heads,)
    for name, gate, width in (("decay", steps.decay, rows), ("erase", steps.erase, rows), ("write", steps.write, columns)):
        shapes = [(tokens, *of_head), (tokens, *of_head, width), *([of_head] if name == "decay" else [])]
        if gate is not None and tuple(gate.shape) not in shapes:
            raise ValueError(f"{name} is one of {[list(shape) for shape in shapes]}, got {list(gate.shape)}")
    if (steps.erase is None) != (steps.write is None):
        raise ValueError("erase and write are given together")
    if torch.compiler.is_compiling() or steps.q.device.type != "cpu":
        return
    for name, gate, most in (("decay", steps.decay, 0.0), ("erase", steps.erase, 2.0), ("write", steps.write, 2.0)):
        if gate is not None and gate.numel():
            least, largest = (float(x) for x in torch.aminmax(gate.detach()))
            if not largest <= most or (name != "decay" and not least >= 0):
                bounds = "logarithms, none above 0" if name == "decay" else "a strength of 0..2"
                raise ValueError(f"{name} is {bounds}, got {least:g}..{largest:g}")


def check_states(steps: Steps, before: States, batch: Batch) -> None:
    """Raises ValueError where the states before are not of this launch."""
    shape = (batch.sequences, steps.heads, steps.q.shape[-1], steps.v.shape[-1])
    if tuple(before.matrix.shape) != shape:
        raise ValueError(f"state is {list(shape)}, got {list(before.matrix.shape)}")
    if before.sum is not None and tuple(before.sum.shape) != shape[:3]:
        raise ValueError(f"sum is {list(shape[:3])}, got {list(before.sum.shape)}")
