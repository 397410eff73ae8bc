"""States of single channels: what a launch takes and gives, the states that decoding keeps, and who runs it in which phase.

For every token of a channel, with M numbers h (compiler/families.py says the same for kernels):

    h[m] <- exp(step rates[m]) h[m] + write[m] u          y = Re(sum over m of weights[m] read[m] h[m])

Legend: T new tokens of S sequences, packed; C channels; M numbers of a channel's state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .autocast import enabled, off, word
from .batch import Batch
from .gates import one_minus
from .storage import LayerCache


@dataclass(frozen=True, eq=False)
class Channels:
    """What every token brings, and what belongs to the channels; absent parts are 1.

    u        [T, C], what is written
    rates    [C, M], real or complex; real parts of step times rates are at most 0
    step     [T, C], or None
    write    [T, M], or None
    read     [T, M], or None
    weights  [C, M], as rates, or None
    """

    u: Tensor
    rates: Tensor
    step: Tensor | None = None
    write: Tensor | None = None
    read: Tensor | None = None
    weights: Tensor | None = None


ChannelScan = Callable[[Channels, Tensor | None, Batch], tuple[Tensor, Tensor]]
"""A provider: (what tokens bring, states [S, C, M] before them or None for zeros, where sequences lie) -> (y [T, C] in u's
dtype, states after, in the rates' dtype: fp32 at least).

A sequence without new tokens keeps its state. Gradients reach every tensor of `Channels` and the states before, from the
outputs and from the states after.
"""


def zero_order_hold(dt_log: Tensor, decay_log: Tensor, frequency: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
    """S4D (arXiv 2206.11893) in steps of dt: (rates, weights) of h <- exp(rates) h + u, y = Re(weights h).

    dt_log [channels]; the continuous system x' = a x + u has a = -exp(decay_log) + i frequency [channels, M], and is read as
    2 Re(c x), c = `reading` [channels, M, 2], real and imaginary parts. States come in conjugate pairs, one of which is kept.
    """
    wide = torch.promote_types(dt_log.dtype, torch.float32)
    a = torch.complex(-torch.exp(decay_log.to(wide)), frequency.to(wide))
    rates = torch.exp(dt_log.to(wide)).unsqueeze(1) * a
    return rates, 2 * torch.view_as_complex(reading.to(wide).contiguous()) * torch.expm1(rates) / a


def gated(v: Tensor, decay: Tensor) -> Channels:
    """h <- f h + (1 - f) v with f = exp(decay), read as it is (HGRN, arXiv 2311.04823).

    v [T, H, E]; decay, logarithms, none above 0: [T, H] or [T, H, E]. Channels are those of all heads.
    """
    gate = (decay if decay.dim() == 3 else decay.unsqueeze(-1).expand(v.shape)).flatten(1)
    rates = gate.new_ones(gate.shape[1], 1)
    return Channels(one_minus(gate) * v.flatten(1), rates, gate)


Formula = Callable[..., tuple[Tensor, Tensor]]
"""A reference: u, step, rates, write, read, weights and state of one sequence -> (y, state)."""


def reference_channels(formula: Formula) -> ChannelScan:
    """The provider `reference`: the formula, one sequence after another; in the rates' dtype."""

    def scan(given: Channels, before: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        wide = given.rates.real.dtype

        def each(x: Tensor | None) -> list[Tensor | None]:
            return [None] * batch.sequences if x is None else list(torch.split(x.to(wide), list(batch.sizes)))

        tokens = zip(*map(each, (given.u, given.step, given.write, given.read)), strict=True)
        outputs, states = [given.u.new_zeros(0, given.u.shape[1])], [given.rates.new_zeros(0, *given.rates.shape)]
        for s, (u, step, write, read) in enumerate(tokens):
            state = None if before is None else before[s]
            y, after = formula(u, step, given.rates, write, read, given.weights, state)
            outputs.append(y.to(given.u.dtype))
            states.append(after.unsqueeze(0))
        return torch.cat(outputs), torch.cat(states)

    return scan


class ChannelStates:
    """u [T, C] with what belongs to it -> y [T, C] in u's dtype. `providers`: who runs it in each phase.

    causal  false: texts are read in both directions with the same numbers, and both outputs are added
    """

    def __init__(self, name: str, *, formula: Formula, causal: bool = True) -> None:
        self.name, self.causal, self.reference = name, causal, reference_channels(formula)
        self.providers: dict[str, ChannelScan] = {}

    def prepare(self, device: torch.device) -> None:
        """Nothing is made ahead."""

    def __call__(self, given: Channels, batch: Batch, cache: LayerCache | None) -> Tensor:
        """Reads the states of the batch's sequences, runs the phase's provider, stores the states after.

        Raises ValueError, naming the argument, for shapes that do not fit, and on a CPU for rates that would let states grow,
        and for NaN among them.
        """
        check(given)
        shape = (batch.sequences, *given.rates.shape)
        before = None
        if cache is not None and batch.max_past > 0:
            before = _read(cache.state("state", batch), shape, given.rates)
        with off(given.u) if enabled(given.u) else nullcontext():
            y, after = self.providers[batch.phase](given, before, batch)
            if not self.causal:
                y = y + _turned(self.providers[batch.phase], given, batch)
        if cache is not None:
            real = torch.view_as_real(after) if after.is_complex() else after
            cache.set_state("state", real.reshape(cache.state("state", batch).shape), batch)
        return y


def _read(state: Tensor, shape: tuple[int, ...], rates: Tensor) -> Tensor:
    """The states that a cache keeps as real numbers, [S, C, M]."""
    if not rates.is_complex():
        return state.reshape(shape)
    return torch.view_as_complex(state.reshape(*shape, 2).contiguous())


def _turned(scan: ChannelScan, given: Channels, batch: Batch) -> Tensor:
    """The outputs of texts read from their ends."""
    last = batch.offsets[1:][batch.sequence] - 1
    index = last - (torch.arange(batch.tokens, device=last.device) - batch.offsets[batch.sequence])
    step, write, read = (None if x is None else x[index] for x in (given.step, given.write, given.read))
    y, _ = scan(Channels(given.u[index], given.rates, step, write, read, given.weights), None, batch)
    return y[index]


def check(given: Channels) -> None:
    """Raises ValueError, naming the argument, where tensors do not fit each other; values are looked at on a CPU alone, since
    a GPU would have to be waited for.
    """
    if given.u.dim() != 2 or given.rates.dim() != 2 or given.rates.shape[0] != given.u.shape[1]:
        raise ValueError(f"u is [T, C] and rates [C, M], got {list(given.u.shape)} and {list(given.rates.shape)}")
    (tokens, channels), state = given.u.shape, given.rates.shape[1]
    wanted = {"step": (tokens, channels), "write": (tokens, state), "read": (tokens, state), "weights": (channels, state)}
    for name, shape in wanted.items():
        x = getattr(given, name)
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"{name} is {list(shape)}, got {list(x.shape)}")
    least = torch.promote_types(given.rates.real.dtype, torch.float32)
    if given.rates.real.dtype != least:
        raise ValueError(f"rates are in float32 at least, got {word(given.rates.dtype)}")
    if torch.compiler.is_compiling() or given.u.device.type != "cpu" or not given.u.numel():
        return
    ends = {"rates": torch.aminmax(given.rates.detach().real)}
    if given.step is not None:
        ends["step"] = torch.aminmax(given.step.detach())
    bounds = [(float(low), float(high)) for low, high in ends.values()]
    products = [one * other for one in bounds[0] for other in (bounds[1] if len(bounds) > 1 else (1.0,))]
    if not all(product <= 0 for product in products):
        shown = " times ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in zip(ends, bounds, strict=True))
        raise ValueError(f"states never grow: rates times step are none above 0, got {shown}")
