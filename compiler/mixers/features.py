"""Feature maps of queries and keys, for kinds that have them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.value import Value


class Taylor(Value):
    """`taylor(2)`: the Taylor polynomial of exp(q.k) of degree n as a feature map (BASED, arXiv 2402.18668)."""

    word: Literal["taylor"] = "taylor"
    n: Annotated[int, Positional(), Bounds(1, 4)]


Feature = Literal["elu", "relu", "favor", "hedgehog", "softmax"]


def feature_width(feature: str | Taylor | None, width: int) -> int:
    """How wide a feature map makes keys of `width`: Taylor's monomials once each, FAVOR's width x log(width) features."""
    if isinstance(feature, Taylor):
        return math.comb(width + feature.n, feature.n)
    if feature == "favor":
        return max(1, int(width * math.log(width)))
    return 2 * width if feature == "hedgehog" else width
