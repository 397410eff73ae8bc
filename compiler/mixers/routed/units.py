"""What `routed` keeps or leaves, and what stands for it while scores are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, NotBuilt, Positional
from attnc.compiler.value import Broken, Value, derived

Size = Annotated[int, Positional(), Bounds(1, 65536)]


class Blocks(Value):
    """`blocks(64)`: blocks of n tokens; one that is not complete is never a candidate."""

    word: Literal["blocks"] = "blocks"
    n: Size


class Clusters(Value):
    """`clusters(16, size = 512)`: n online k-means clusters of at most `size` tokens (Routing Transformer, arXiv 2003.05997).

    `ema`: the factor of the centres' average; `commit` weighs the pull of tokens to their centre.
    """

    word: Literal["clusters"] = "clusters"
    n: Annotated[int, Positional(), Bounds(2, 65536)]
    size: Annotated[int, Bounds(1, 2**24)]
    ema: Annotated[float, Bounds(0, 1)] = 0.999
    commit: Annotated[float, Bounds(0, 1)] = 1e-4


class Predicted(Value):
    """`predicted(window = 4, nms = 8)`: a net says where chunks begin, from `window` keys on either side (arXiv 2510.24606).

    Of boundaries nearer than `nms` tokens the best is kept.
    """

    word: Literal["predicted"] = "predicted"
    window: Annotated[int, Bounds(1, 65536)]
    nms: Annotated[int, Bounds(1, 65536)]


class Mean(Value):
    """`mean`: a unit's mean key (MoBA, arXiv 2502.13189); `mean(32, stride = 16)`: of chunks (InfLLM-V2, arXiv 2509.24663).

    `chunks = predicted(...)`: of chunks whose size the content decides.
    """

    word: Literal["mean"] = "mean"
    n: Annotated[int | None, Positional(), Bounds(1, 65536)] = None
    stride: Annotated[int | None, Bounds(1, 65536)] = derived(default_factory=lambda given: given["n"])
    chunks: Annotated[Predicted | None, NotBuilt()] = None

    def broken(self) -> Iterator[Broken]:
        """A stride belongs to chunks of n and leaves none out; chunks have one size, or the content decides."""
        if self.n is None and self.stride is not None:
            yield Broken(
                "stride", "`mean` with a stride needs the size of its chunks", "`mean(n, stride = ...)`", "give n first"
            )
        if self.n is not None and (self.stride is None or self.stride > self.n):
            message = f"chunks of {self.n} leave tokens out when the next begins after `stride`"
            yield Broken("stride", message, "a stride of at most n", f"write at most {self.n}", "A104")
        if self.n is not None and self.chunks is not None:
            message = f"chunks of {self.n} have one size, but `chunks` lets the content decide"
            yield Broken("chunks", message, "n or `chunks`", "leave one of them out")


class TwoStep(Value):
    """`two_step(rope = in_block)`: the block's mean read attends over its keys (LongHeads, arXiv 2402.10685).

    `rope`: positions while pooling, counted from the block's beginning, or as everywhere (`same`).
    """

    word: Literal["two_step"] = "two_step"
    rope: Literal["in_block", "same"] = "in_block"


class LearnedPool(Value):
    """`learned(pool = [max, min, mean])`: pooled queries and keys through learned maps (SeerAttention, arXiv 2410.13276)."""

    word: Literal["learned"] = "learned"
    pool: tuple[Literal["mean", "max", "min", "sum"], ...] = ("max", "min", "mean")

    def broken(self) -> Iterator[Broken]:
        """Each pool once."""
        if len(set(self.pool)) < len(self.pool):
            yield Broken("pool", "a pool is named twice", "each pool once", "remove one", "A106")


class Hash(Value):
    """`hash(128)`: signs of a random projection, scored by Hamming distance (HATA; UCM)."""

    word: Literal["hash"] = "hash"
    bits: Annotated[int, Positional(), Bounds(8, 1024)]

    def broken(self) -> Iterator[Broken]:
        """Whole bytes."""
        if self.bits % 8:
            message = f"{self.bits} bits are no whole number of bytes"
            yield Broken("bits", message, "a multiple of 8", f"use {-(-self.bits // 8) * 8} bits", "A204")


class Indexer(Value):
    """`indexer(heads = 64, head_dim = 128)`: sum over small heads of weight x relu(q.k) (DeepSeek-V3.2's sparse attention).

    All heads share one key a token; `pool`: one a unit.
    """

    word: Literal["indexer"] = "indexer"
    heads: Annotated[int, Bounds(1, 1024)]
    head_dim: Annotated[int, Bounds(1, 1024)]
    pool: Literal["mean", "max", "sum"] | None = None


Unit = Literal["tokens", "columns", "diagonals"] | Blocks | Clusters


def unit_size(unit: object) -> int:
    """Tokens in a unit."""
    return unit.n if isinstance(unit, Blocks) else 1
