"""What a model keeps between calls: the storage of every layer, and how many tokens of each sequence are in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .sizes import Share, largest
from .storage import Growing, LayerCache, LayerPlan, Ring, Slots, State

__all__ = ["Cache", "CacheError", "Growing", "LayerCache", "LayerPlan", "Ring", "Slots", "Snapshot", "State"]


class CacheError(RuntimeError):
    """A cache cannot do what was asked. A507: an inexact crop; A508: too many tokens; A509: the model looks ahead."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A cache's content at one moment, for `Cache.restore`."""

    counts: tuple[int, ...]
    tensors: tuple[Tensor, ...]


class Cache:
    """Keys, values and states of `batch` sequences, S rows, for all layers.

    `lengths` [S] int64 (on the device) and `counts` (the same on the host) say how much is stored. A model reads them
    through `Batch.of`, writes layer by layer, and calls `advance` at the end of a call: one that fails leaves them alone.
    """

    def __init__(
        self,
        layers: Sequence[LayerPlan],
        batch: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batch, self.max_length, self.dtype, self.device = batch, max_length, dtype, torch.device(device)
        self.counts: tuple[int, ...] = (0,) * batch
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self.layers: list[LayerCache] = []
        for plan in layers:
            keys = None if plan.keys_from is None else self.layers[plan.keys_from]
            self.layers.append(LayerCache(plan, batch, max_length, dtype, self.device, keys))
        keeps = [slots.keep for plan in layers for slots in plan.slots]
        self.limited = any(isinstance(keep, Growing) or isinstance(keep.recent, Share) for keep in keeps)

    def layer(self, index: int) -> LayerCache:
        """The storage of layer `index`."""
        return self.layers[index]

    def reserve(self, sizes: Sequence[int]) -> None:
        """A call with that many new tokens of each sequence begins. A508 if they do not fit; rings and states never fill."""
        for layer in self.layers:
            layer.settle(keep=False)
        longest = largest([count + size for count, size in zip(self.counts, sizes, strict=True)])
        if self.limited and longest > self.max_length:
            raise CacheError(
                "A508", f"a sequence of {longest} tokens does not fit into a cache of max_length {self.max_length}"
            )

    def advance(self, batch: Batch) -> None:
        """The batch's tokens are stored in every layer: count them."""
        assert batch.rows is None, "the whole batch advances at once"
        for layer in self.layers:
            layer.settle(keep=True)
        self.counts = tuple(past + size for past, size in zip(batch.pasts, batch.sizes, strict=True))
        self.lengths = batch.past + (batch.offsets[1:] - batch.offsets[:-1])

    def bytes(self) -> int:
        """Bytes of all storage: what `cache_spec` foretells for `batch` sequences of `max_length`."""
        return sum(layer.bytes() for layer in self.layers)

    def snapshot(self) -> Snapshot:
        """A copy of what is stored; costs memory in proportion to the tokens stored, not to max_length."""
        longest = largest(self.counts)
        return Snapshot(self.counts, tuple(view.clone() for layer in self.layers for view in layer.used(longest)))

    def restore(self, state: Snapshot) -> None:
        """Make the cache what it was at `snapshot`. ValueError if the snapshot is of another cache's shape."""
        views = [view for layer in self.layers for view in layer.used(largest(state.counts))]
        if [view.shape for view in views] != [tensor.shape for tensor in state.tensors] or len(state.counts) != self.batch:
            raise ValueError("the snapshot was taken from a cache of another shape")
        for view, tensor in zip(views, state.tensors, strict=True):
            view.copy_(tensor)
        self._set(state.counts)

    def crop(self, n: int | Sequence[int]) -> None:
        """Keep the first n tokens of every sequence (or n[s] of sequence s); shorter ones stay as they are.

        A507 where the rest cannot be exact: a ring has lost keys that the shorter text sees, or a state cannot go back.
        """
        wanted = (n,) * self.batch if isinstance(n, int) else tuple(n)
        if len(wanted) != self.batch or any(count < 0 for count in wanted):
            raise ValueError(f"crop takes one number of tokens, or {self.batch}, none negative; got {n}")
        after = tuple(min(pair) for pair in zip(self.counts, wanted, strict=True))
        for s, (old, new) in enumerate(zip(self.counts, after, strict=True)):
            for index, layer in enumerate(self.layers):
                if not layer.can_crop(old, new):
                    raise CacheError("A507", f"layer {index} cannot go back from {old} to {new} tokens of sequence {s} exactly")
        empty = [s for s, count in enumerate(after) if count == 0]
        for layer in self.layers:
            for state in layer.states.values():
                state[empty] = 0
        self._set(after)

    def _set(self, counts: tuple[int, ...]) -> None:
        self.counts = counts
        self.lengths = torch.tensor(counts, dtype=torch.int64, device=self.device)
