"""How `routed` decides: how many units, who asks, how they score, who shares a choice, and how long it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.mixers.features import Feature, Taylor
from attnc.compiler.mixers.routed.units import Mean, Size
from attnc.compiler.value import Broken, Value


class Sublinear(Value):
    """`sublinear(64, from = 8192, exponent = 0.7)`: k units, k (length / from)^exponent beyond (arXiv 2504.17768)."""

    word: Literal["sublinear"] = "sublinear"
    k: Annotated[int, Positional(), Bounds(1, 2**24)]
    from_: Annotated[int, Bounds(1, 2**24)]
    exponent: Annotated[float, Bounds(0, 1)]


class LogGaussian(Value):
    """`log_gaussian(64, mean = 4, std = 2)`: quotas for blocks of b (TCA-Attention, arXiv 2512.09238).

    The part of blocks that keep 1, 2, 4, ..., b tokens is normal in log2; blocks with more score keep more.
    """

    word: Literal["log_gaussian"] = "log_gaussian"
    b: Size
    mean: Annotated[float, Bounds(0, 16), Budgeted("tuned")]
    std: Annotated[float, Bounds(1e-3, 16), Budgeted("tuned")]

    def broken(self) -> Iterator[Broken]:
        """Quotas double from 1 to b."""
        if self.b & (self.b - 1):
            message = f"quotas double from 1 to b, and {self.b} is no power of two"
            yield Broken("b", message, "a power of two", f"use {1 << (self.b.bit_length() - 1)}", "A204")


class QueryBlock(Value):
    """`block(64, stride = 1)`: a query block asks as one, by the mean of every stride-th of its queries."""

    word: Literal["block"] = "block"
    n: Size
    stride: Annotated[int, Bounds(1, 65536)] = 1

    def broken(self) -> Iterator[Broken]:
        """Something of each block is left."""
        if self.stride > self.n:
            message = f"every {self.stride}th query of a block of {self.n}"
            yield Broken("stride", message, "a stride of at most n", f"write at most {self.n}", "A104")


class First(Value):
    """`first(64)`: the first n."""

    word: Literal["first"] = "first"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class Last(Value):
    """`last(64)`: the last n."""

    word: Literal["last"] = "last"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class SoftmaxScore(Value):
    """`softmax`: scores as shares of the mass; `lse = mean(n, stride = m)`: coarser keys for the denominator (InfLLM-V2)."""

    word: Literal["softmax"] = "softmax"
    lse: Mean | None = None

    def broken(self) -> Iterator[Broken]:
        """Coarser keys have a size."""
        if self.lse is not None and self.lse.n is None:
            yield Broken("lse", "the coarser keys need a size", "`mean(n, stride = m)`", "write `lse = mean(128)`")


class Antidiagonal(Value):
    """`antidiagonal(16)`: every n-th antidiagonal of a block summed (XAttention, arXiv 2503.16428)."""

    word: Literal["antidiagonal"] = "antidiagonal"
    n: Size


class Estimated(Value):
    """`estimated(width = 128, feature = favor)`: a map by linear attention, sharpened by a CNN (SEA, arXiv 2310.01777)."""

    word: Literal["estimated"] = "estimated"
    width: Annotated[int, Bounds(1, 65536)]
    feature: Feature | Taylor
    decoder: Literal["cnn"] = "cnn"


Pool = Literal["sum", "max", "mean", "min"]


class PerGroup(Value):
    """`group(sum)`: the query heads of a KV head share a choice; their scores are pooled."""

    word: Literal["group"] = "group"
    pool: Annotated[Pool, Positional()] = "sum"


class PerLayer(Value):
    """`layer(sum)`: all heads of the layer share a choice; their scores are pooled."""

    word: Literal["layer"] = "layer"
    pool: Annotated[Pool, Positional()] = "sum"


class Tree(Value):
    """`tree(2)`: the best of a tree of intervals, each split into `branch` (HiP, arXiv 2406.09827)."""

    word: Literal["tree"] = "tree"
    branch: Annotated[int, Positional(), Bounds(2, 65536)]


class Every(Value):
    """`every(8)`: a new choice every n decode steps."""

    word: Literal["every"] = "every"
    n: Annotated[int, Positional(), Bounds(1, 65536), Budgeted("tuned")]


class Cosine(Value):
    """`cosine(0.8, every = 5)`: a new choice when the query's cosine with that of the last choice falls below x.

    Looked at every n decode steps (Recycled Attention, arXiv 2411.05787).
    """

    word: Literal["cosine"] = "cosine"
    x: Annotated[float, Positional(), Bounds(0, 1)]
    every: Annotated[int, Bounds(1, 65536)] = 1
