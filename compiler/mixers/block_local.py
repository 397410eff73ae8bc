"""`block_local(n, shift = 0%)`: the own block of n; blocks may begin a share of n later, and never wrap round.

Shifted blocks without wrapping are LongLoRA's (arXiv 2309.12307) in the form that leaks nothing: what comes before the first
shifted block is a block of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.intervals import Intervals, Near
from attnc.compiler.mixer import Kept, Kind, Mixer
from attnc.compiler.value import Share, Text, Tokens, part_of, tokens_of


class BlockLocal(Kind):
    """`block_local(256)`, `block_local(25%, shift = 50%)`; n: tokens or a share of the length; shift: a share of n."""

    kind: Literal["block_local"] = "block_local"
    n: Annotated[Tokens, Positional(), Bounds(1, 2**24), Budgeted("tuned")]
    shift: Annotated[Share, Bounds(0, 0)] = Share(percent=0)


def block_local_mask(i: Any, j: Any, *, causal: bool, n: int, shift: int) -> Any:
    """Query i sees key j: both in the same block of n, counted from position `shift`."""
    same = (i - shift) // n == (j - shift) // n
    return same & (j <= i) if causal else same


def _sizes(kind: BlockLocal, length: int | Text) -> dict[str, int | Text]:
    n = tokens_of(kind.n, length)
    return {"n": n, "shift": part_of(n, kind.shift)}


def _intervals(kind: BlockLocal, causal: bool) -> Intervals:
    """Blocks that begin later by a part of n begin earlier by the rest of it."""
    shift: Tokens
    if isinstance(kind.n, Share):
        shift = Share(percent=100 - kind.shift.percent) if 0 < kind.shift.percent < 100 else 0
    else:
        shift = -part_of(kind.n, kind.shift) % kind.n
    return Intervals(near=(Near(align=kind.n, shift=shift),), causal=causal)


MIXER = Mixer(
    name="block_local",
    type="keys",
    parameters=BlockLocal,
    make_examples=lambda: (BlockLocal(n=4), BlockLocal(n=4, shift=Share(percent=50)), BlockLocal(n=Share(percent=25))),
    mask=block_local_mask,
    sizes=_sizes,
    intervals=_intervals,
    kept=lambda kind: Kept(recent=kind.n),
)
