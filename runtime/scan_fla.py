"""The provider `fla` of matrix states: the kernels of flash-linear-attention, where it is installed, in fp32 states.

| decay | add | delta, one strength | delta, two strengths |
|---|---|---|---|
| none | simple_gla | delta_rule | gdn2 |
| head, scalar | simple_gla | gated_delta_rule | gdn2 |
| vector | gla | kda | gdn2 |

Many new tokens run in chunks, a few recurrently. Sums of keys are one more column of the values.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .recurrence import States, Steps
from .sizes import DECODE_TOKENS, alike


def fla_scan(steps: Steps, before: States | None, batch: Batch) -> tuple[Tensor, States]:
    """A `Scan` (recurrence.py) on a GPU; what the library cannot do it says itself."""
    q, k, v = (x.repeat_interleave(steps.heads // x.shape[1], dim=1) for x in (steps.q, steps.k, steps.v))
    state = None if before is None else before.matrix.float()
    if steps.normalize:
        v = torch.cat((v, v.new_ones(*v.shape[:2], 1)), dim=-1)
        if before is not None and before.sum is not None and state is not None:
            state = torch.cat((state, before.sum.float().unsqueeze(-1)), dim=-1)
    room, gates = _gates(steps, k, v)
    packed = not alike(batch.sizes)
    rows = (1, len(q)) if packed else (batch.sequences, batch.max_new)

    def laid(x: Tensor) -> Tensor:
        """[T, ...] -> [1, T, ...] beside `cu_seqlens`, or [S, n, ...]."""
        return x if x.dim() == 1 else x.reshape(*rows, *x.shape[1:]).contiguous()

    few = batch.max_new <= DECODE_TOKENS and batch.phase != "train"
    names = {"g": "gk"} if few and room == "gla" else {}
    o, after = _operator(room, few)(
        laid(q),
        laid(k),
        laid(v),
        **{names.get(name, name): laid(gate) for name, gate in gates.items()},
        scale=1.0 if steps.normalize else steps.scale,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=batch.offsets if packed else None,
    )
    return _read(o.reshape(len(q), *o.shape[2:]), after, steps.normalize)


def _read(o: Tensor, after: Tensor, normalize: bool) -> tuple[Tensor, States]:
    """Outputs and states; what is divided by 0 is 0."""
    if not normalize:
        return o, States(after)
    top, mass = o[..., :-1].float(), o[..., -1:].float()
    return torch.where(mass == 0, 0.0, top / torch.where(mass == 0, 1.0, mass)), States(after[..., :-1], after[..., -1])


def _gates(steps: Steps, k: Tensor, v: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The room of fla.ops that says this, and its gates by the names that it gives them."""
    decay, by_row = steps.decay, steps.decay is not None and steps.decay.dim() == 3
    if steps.erase is None or steps.write is None:
        if by_row:
            return "gla", {"g": _there(decay)}
        return "simple_gla", {} if decay is None else {"g_gamma" if decay.dim() == 1 else "g": decay}
    alone = steps.erase is steps.write and steps.erase.dim() == 2
    if decay is None and alone:
        return "delta_rule", {"beta": steps.erase}
    if decay is None:
        decay = k.new_zeros(k.shape[:2], dtype=torch.float32)
    decay = decay.expand(len(k), -1) if decay.dim() == 1 else decay
    if alone:
        return "kda" if by_row else "gated_delta_rule", {"g": decay, "beta": steps.erase}
    erase, write = (_wide(gate, x) for gate, x in ((steps.erase, k), (steps.write, v)))
    return "gdn2", {"g": _wide(decay, k), "b": erase, "w": write}


def _there(x: Tensor | None) -> Tensor:
    assert x is not None, "asked only where there is a decay"
    return x


def _wide(gate: Tensor, x: Tensor) -> Tensor:
    """[T, H] or [T, H, width] -> x's shape."""
    return gate if gate.dim() == 3 else gate.unsqueeze(-1).expand(x.shape)


def _operator(room: str, few: bool) -> Any:
    """The library's function, imported when it is first needed."""
    return getattr(import_module(f"fla.ops.{room}"), f"{'fused_recurrent' if few else 'chunk'}_{room}")
