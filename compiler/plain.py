"""How a kind becomes a launch that plain PyTorch runs: what codegen and the plan read instead of the kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What PyTorch is asked for, for a price: `flops` of every new token; of every pair of a query and an earlier token
    (`pairs`); numbers that are read and written of `each` token, and in each call whatever its length, such as weights; and
    launches for each block of so many tokens (0: for each call). `trained`: flops of every pair that training adds.
    """

    flops: float
    each: float
    pairs: float = 0.0
    numbers: float = 0.0
    block: int = 0
    launches: int = 1
    trained: float = 0.0


class Stored(NamedTuple):
    """A key and a value of every token, [heads, width] each, which decoding keeps; `exact`: values in float32 at least."""

    heads: int
    key_width: int
    value_width: int
    exact: bool = False


@dataclass(frozen=True)
class Plain:
    """The launch, and what makes its tensors of the layer's input x.

    file      the file of runtime/ with its class; `name`: the class
    options   its arguments behind the launch's name, as data
    formulas  the reference, functions that import only torch; the last one is given to the class
    width     of what the launch returns
    out       the linear map behind it, empty where there is none
    tensors   weights of the kind that are handed over as they are; those of other linear maps are applied to x
    stored    what decoding keeps of every token, beside the kind's states
    how       what PyTorch does, in a word or two
    """

    file: str
    name: str
    options: dict[str, str | int | float | None]
    formulas: tuple[Callable[..., Any], ...]
    width: int
    cost: Cost
    out: str = ""
    tensors: tuple[str, ...] = ()
    stored: Stored | None = None
    how: str = ""
