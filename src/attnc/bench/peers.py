"""What a participant is: how it lies, what it refuses, how it runs; and the runtime's own providers as participants.

Legend: T = B * N tokens of B sequences; H query heads on G KV heads; D key width; E value width; L keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from attnc.bench.work import Work

Run = Callable[..., Tensor]
"""run(q, k, v, sink_logit) -> o, all in a participant's own layout."""


@dataclass(frozen=True)
class Layout:
    """How a participant wants [T, heads, width] to lie, and the way back."""

    lay: Callable[[Tensor, int], Tensor]
    pack: Callable[[Tensor], Tensor]


PACKED = Layout(lambda x, _: x.clone(), lambda x: x)
TOKENS_FIRST = Layout(lambda x, b: x.view(b, -1, *x.shape[1:]).clone(), lambda x: x.flatten(0, 1))
"""[B, N, heads, width], as flash-attn has it."""
HEADS_FIRST = Layout(
    lambda x, b: x.view(b, -1, *x.shape[1:]).transpose(1, 2).clone(memory_format=torch.contiguous_format),
    lambda x: x.transpose(1, 2).flatten(0, 1),
)
"""[B, heads, N, width], as scaled_dot_product_attention and flex_attention have it."""


@dataclass(frozen=True)
class Prepared:
    """A participant with its inputs, in its own layout, at hand.

    inputs   by name: q, k, v and sink_logit where there is one; decode: the query alone, keys are bound in `run`
    setup    seconds that masks and the like took, made once for a length; None where there are none
    """

    run: Run
    inputs: dict[str, Tensor]
    layout: Layout
    setup: float | None = None


class Peer(Protocol):
    """A participant in work of one sort."""

    @property
    def name(self) -> str:
        """What `--against` calls it."""
        ...

    def refuse(self, work: Any) -> str | None:
        """Why it cannot do this work, or None."""
        ...

    def prepare(self, work: Any) -> Prepared:
        """Ready to run; whatever it compiles is compiled at its first call."""
        ...


@dataclass(frozen=True)
class Provided:
    """One of the providers of the folder's own runtime: `triton` is the generated kernels."""

    name: str

    def provider(self, work: Work) -> Any:
        """Which of them, or which of them for which heads."""
        del work
        return self.name

    def refuse(self, work: Work) -> str | None:
        """Kernels need a GPU, and a folder can only do what its runtime holds."""
        provider = self.provider(work)
        if provider == "triton" and work.q.device.type != "cuda":
            return "generated kernels need a GPU"
        if provider == "torch" and not work.launch.plain:
            return "has no such score"
        return work.launch.lacking(provider, work.q.device, work.q.dtype)

    def prepare(self, work: Work) -> Prepared:
        """The part's tables of numbers are made once: they are the same in all layers."""
        provider, mix = work.launch.provider(self.provider(work)), work.launch.mix

        def run(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, sink_logit: Tensor | None = None) -> Tensor:
            part = work.part if k is None or v is None else replace(work.part, k=k.reshape(-1), v=v.reshape(-1))
            o: Tensor = provider(q, (part,), work.groups, work.form, work.batch, mix.scale, mix.cap, sink_logit)
            return o

        return Prepared(run, inputs(work, PACKED), PACKED)


@dataclass(frozen=True)
class Gluon(Provided):
    """The generated kernels of which those for many queries are in Gluon; ours are those in Triton alone."""

    name: str = "gluon"

    def refuse(self, work: Work) -> str | None:
        """It decodes as ours does, and some widths it does not take."""
        if work.phase == "decode":
            return "its kernel is for many queries; it decodes as triton does"
        refused = super().refuse(work)
        if refused is None and work.launch.folder.model.kernels(work.launch.name, gluon=True) is None:
            return "the folder has no kernel in Gluon for these widths"
        return refused


@dataclass(frozen=True)
class Planned(Provided):
    """The provider that a built model would run, where that is not ours already."""

    name: str = "planned"

    def refuse(self, work: Work) -> str | None:
        """It is not run twice."""
        provider = self.provider(work)
        return f"is {provider}" if provider == ours(work.q.device, work.launch.plain) else super().refuse(work)

    def provider(self, work: Work) -> Any:
        """As the folder's plan for this kind of device says."""
        return work.planned


def ours(device: torch.device, plain: bool = True) -> str:
    """The participant that ratios are to: the generated kernels, or on a CPU the provider that runs there (`plain`: Launch)."""
    return "triton" if device.type == "cuda" else "torch" if plain else "reference"


def inputs(work: Work, layout: Layout) -> dict[str, Tensor]:
    """q, k, v (not while decoding) and the sink logit where there is one, in a participant's layout."""
    tensors = {"q": work.q, "k": work.k, "v": work.v}
    found = {name: layout.lay(x, work.sequences) for name, x in tensors.items() if x is not None}
    return found if work.sink_logit is None else found | {"sink_logit": work.sink_logit}


def decoding(work: Work, attend: Run) -> Prepared:
    """One new token a sequence over exactly the keys that it sees, side by side: the best that a cache of any kind can offer.

    A call for each group of heads that see alike: attend(q [B, H', 1, D], k [B, G', L, D], v [B, G', L, E]) and, where there
    is one, sink_logit [H'].
    """
    repeat = work.launch.repeat
    bound = [(slice(first * repeat, (last + 1) * repeat), *work.seen(first, last, group)) for first, last, group in work.spans]

    def run(q: Tensor, sink_logit: Tensor | None = None) -> Tensor:
        more = [() if sink_logit is None else (sink_logit[heads],) for heads, _, _ in bound]
        outputs = [attend(q[:, heads], k, v, *sink) for (heads, k, v), sink in zip(bound, more, strict=True)]
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]

    return Prepared(run, inputs(work, HEADS_FIRST), HEADS_FIRST)


def wait(work: Work) -> None:
    """Until the device has done all that it was asked for."""
    if work.q.device.type == "cuda":
        torch.cuda.synchronize()
