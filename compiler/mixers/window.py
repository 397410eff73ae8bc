"""`window(n, aligned = 1)`: the last n keys, the own one included; `aligned = g`: whole blocks of g, the own one the last."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Divides, Positional
from attnc.compiler.intervals import Intervals, Near
from attnc.compiler.mixer import Kept, Kind, Mixer
from attnc.compiler.value import Share, Text, Tokens, tokens_of


class Window(Kind):
    """`window(1024)`, `window(2048, aligned = 1024)`, `window(10%)`; n counts tokens or is a share of the length."""

    kind: Literal["window"] = "window"
    n: Annotated[Tokens, Positional(), Bounds(1, 2**24), Budgeted("tuned")]
    aligned: Annotated[int, Bounds(1, 65536), Divides("n")] = 1


def window_mask(i: Any, j: Any, *, causal: bool, n: int, aligned: int) -> Any:
    """Query i sees key j: fewer than n/aligned blocks of `aligned` tokens back, and in both directions unless causal."""
    near = (i // aligned - j // aligned).abs() < n // aligned
    return near & (j <= i) if causal else near


def _sizes(kind: Window, length: int | Text) -> dict[str, int | Text]:
    return {"n": tokens_of(kind.n, length), "aligned": kind.aligned}


def _intervals(kind: Window, causal: bool) -> Intervals:
    back = kind.n if isinstance(kind.n, Share) else kind.n - kind.aligned
    return Intervals(near=(Near(align=kind.aligned, back=back, ahead=0 if causal else back),), causal=causal)


MIXER = Mixer(
    name="window",
    type="keys",
    parameters=Window,
    make_examples=lambda: (Window(n=5), Window(n=8, aligned=4), Window(n=Share(percent=25))),
    mask=window_mask,
    sizes=_sizes,
    intervals=_intervals,
    kept=lambda kind: Kept(recent=kind.n),
)
