"""`merge(share, by = bipartite)`: that share of the tokens merged into their most similar ones (ToMe, arXiv 2210.09461).

Every second token is a candidate, and goes into the most similar of the others; the rest of the layer's chain and all later
layers work on the shorter sequence. Merging looks both ways, so it is for encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.mixer import Kind, Mixer
from attnc.compiler.value import Broken, Share


class Merge(Kind):
    """`merge(50%, by = bipartite)`: half of the tokens, the most that pairs allow."""

    kind: Literal["merge"] = "merge"
    share: Annotated[Share, Positional(), Bounds(0, 0, share_low=0.1, share_high=50)]
    by: Literal["bipartite"]


def _fits(_kind: Merge, attributes: Any, _model: Any) -> Iterator[Broken]:
    if attributes.causal:
        message = "`merge` looks for similar tokens both ways, so earlier outputs would depend on later tokens"
        yield Broken("", message, "`causal = false`", "set `causal = false` in `model`, or leave `merge` out", "A309")


MIXER = Mixer(
    name="merge",
    type="change",
    parameters=Merge,
    make_examples=lambda: (Merge(share=Share(percent=25), by="bipartite"),),
    fits=_fits,
    slots=lambda kind: 1 - kind.share.percent / 100,
)
