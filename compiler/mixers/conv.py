"""`conv(n, expand = 1)`: gated causal depthwise convolution (LFM2; BASED, arXiv 2402.18668)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.mixer import Kind, Mixer, Weight, convolution


class Conv(Kind):
    """`conv(3)`: each channel mixes its last n tokens; the inner width is expand x dim."""

    kind: Literal["conv"] = "conv"
    n: Annotated[int, Positional(), Bounds(1, 64)]
    expand: Annotated[int, Bounds(1, 8)] = 1


def gated_convolution(x: Any, in_proj: Any, conv: Any, out_proj: Any, state: Any = None) -> tuple[Any, Any]:
    """B, C, u = in_proj(x); y = out_proj(C * conv(B * u)).

    x [batch, tokens, width]; in_proj [3 inner, width]; conv [inner, n], its last column weighs the newest token;
    out_proj [width, inner]. `state` [batch, n - 1, inner] holds the last n - 1 values of B * u, zeros at the start.
    Returns y [batch, tokens, width] and the new state.
    """
    import torch

    before, after, u = torch.nn.functional.linear(x, in_proj).chunk(3, dim=-1)
    n = conv.shape[1]
    gated = before * u
    if state is None:
        state = gated.new_zeros(gated.shape[0], n - 1, gated.shape[2])
    history = torch.cat((state, gated), dim=1)
    tokens = gated.shape[1]
    mixed = torch.zeros_like(gated)
    for tap in range(n):
        mixed = mixed + history[:, tap : tap + tokens] * conv[:, tap]
    return torch.nn.functional.linear(after * mixed, out_proj), history[:, tokens:]


def _weights(kind: Conv, _attributes: Any, model: Any) -> tuple[Weight, ...]:
    inner = kind.expand * model.dim
    return (
        Weight(name="in_proj.weight", shape=(3 * inner, model.dim)),
        convolution("conv", inner, kind.n),
        Weight(name="out_proj.weight", shape=(model.dim, inner)),
    )


MIXER = Mixer(
    name="conv",
    type="mixer",
    parameters=Conv,
    make_examples=lambda: (Conv(n=3), Conv(n=4, expand=2)),
    reference=gated_convolution,
    weights=_weights,
    state=lambda kind, _attributes, model: {"conv": (kind.n - 1, kind.expand * model.dim)},
    looks_back=lambda _kind: True,
    takes=lambda _kind: frozenset({"causal"}),
)
