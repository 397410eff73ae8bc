"""`conv(n, expand = 1)`: gated causal depthwise convolution (LFM2; BASED, arXiv 2402.18668)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.mixer import Kind, Mixer, Weight, convolution
from attnc.compiler.plain import Cost, Plain


class Conv(Kind):
    """`conv(3)`: each channel mixes its last n tokens; the inner width is expand x dim."""

    kind: Literal["conv"] = "conv"
    n: Annotated[int, Positional(), Bounds(1, 64)]
    expand: Annotated[int, Bounds(1, 8)] = 1


def gated_convolution(given: Any, conv: Any, state: Any = None) -> tuple[Any, Any]:
    """y = C * conv(B * u), of B, C and u side by side.

    given [tokens, 3 inner] of one sequence; conv [inner, n], its last column weighs the newest token. `state` [n - 1, inner]
    holds the last n - 1 values of B * u, zeros at the start. Returns y [tokens, inner] and the new state.
    """
    import torch

    before, after, u = given.chunk(3, dim=-1)
    n = conv.shape[1]
    gated = before * u
    if state is None:
        state = gated.new_zeros(n - 1, gated.shape[1])
    history = torch.cat((state, gated))
    tokens = len(gated)
    mixed = torch.zeros_like(gated)
    for tap in range(n):
        mixed = mixed + history[tap : tap + tokens] * conv[:, tap]
    return after * mixed, history[tokens:]


def _weights(kind: Conv, _attributes: Any, model: Any) -> tuple[Weight, ...]:
    inner = kind.expand * model.dim
    return (
        Weight(name="in_proj.weight", shape=(3 * inner, model.dim)),
        convolution("conv", inner, kind.n),
        Weight(name="out_proj.weight", shape=(model.dim, inner)),
    )


def _plain(kind: Conv, _attributes: Any, model: Any) -> Plain:
    """Each input shifted under the next tap, between the linear maps."""
    inner = kind.expand * model.dim
    maps = 8 * inner * model.dim
    return Plain(
        file="convolution",
        name="GatedConvolution",
        options={},
        formulas=(gated_convolution,),
        width=inner,
        cost=Cost(flops=maps + 2 * kind.n * inner, each=(6 + 4 * kind.n) * inner, numbers=maps / 2, launches=2 + 2 * kind.n),
        out="out_proj",
        tensors=("conv.weight",),
        how="shifted inputs",
    )


MIXER = Mixer(
    name="conv",
    type="mixer",
    parameters=Conv,
    make_examples=lambda: (Conv(n=3), Conv(n=4, expand=2)),
    reference=gated_convolution,
    plain=_plain,
    weights=_weights,
    state=lambda kind, _attributes, model: {"conv": (kind.n - 1, kind.expand * model.dim)},
    looks_back=lambda _kind: True,
    takes=lambda _kind: frozenset({"causal"}),
)
