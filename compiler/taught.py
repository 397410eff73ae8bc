"""How a kind becomes a launch of fast weights: what codegen and the plan read instead of the kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnc.compiler.families import FastWeights
from attnc.compiler.streams import Streams


@dataclass(frozen=True)
class Taught:
    """The member of the family, and what makes its tensors of the layer's input x.

    heads     nets; `streams`: q, k and v with how many heads each, k and v repeated for neighbouring nets
    chunk     tokens between which gradients are taken at the same weights
    shapes    the net's weights as every text begins with them, name -> [heads, outputs, inputs]; their tensors are `net.NAME`
    numbers   rates of the family that are numbers, by name
    norm      the name of the layer norm's weight and bias, where there is one
    formulas  the reference of one sequence, functions that import only torch; the last one is called
    """

    family: FastWeights
    heads: int
    streams: Streams
    chunk: int
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, float]
    formulas: tuple[Callable[..., Any], ...]
    norm: str = "net_norm"
