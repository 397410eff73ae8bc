"""LSTM and GRU over packed sequences, by PyTorch's own (cuDNN's on a GPU); their states lie in the cache.

Legend: T new tokens of S sequences; W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .autocast import enabled, off
from .batch import Batch
from .call import Call
from .plain import PlainLaunch, check_cache

Formula = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""A reference: x [N, W] of one sequence, four weights, state -> (y [N, W], state)."""


class Recurrent(PlainLaunch):
    """x [T, W] -> h of every token [T, W]. `cell`: lstm, whose state is h and c, or gru, whose state is h."""

    def __init__(self, name: str, *, cell: str, formula: Formula) -> None:
        super().__init__(name, {"torch": self._torch, "reference": self._reference})
        self.cell, self.formula = cell, formula
        self.states = ("h", "c") if cell == "lstm" else ("h",)

    def __call__(self, x: Tensor, call: Call, slot: int, *weights: Tensor) -> Tensor:
        """weights: from the input and from the state [gates W, W], and a bias [gates W] of each, as PyTorch lays them out."""
        batch, cache = call.batch, call.slot(slot)
        if not batch.tokens:
            return x
        shape = (batch.sequences, x.shape[1])
        dtype = weights[0].dtype
        if cache is not None:
            check_cache(cache, dict.fromkeys(self.states, (x.shape[1],)))
        if cache is None:
            before = tuple(x.new_zeros(shape, dtype=dtype) for _ in self.states)
        else:
            before = tuple(cache.state(name, batch).to(dtype) for name in self.states)
        with off(x) if enabled(x) else nullcontext():
            y, after = self.providers[batch.phase](x.to(dtype), batch, weights, before)
        if cache is not None:
            for name, state in zip(self.states, after, strict=True):
                cache.set_state(name, state, batch)
        out: Tensor = y.to(x.dtype)
        return out

    def _torch(
        self, x: Tensor, batch: Batch, weights: Sequence[Tensor], before: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        count, training = batch.sequences, torch.is_grad_enabled()
        options = (list(weights), True, 1, 0.0, training, False)
        if len(set(batch.sizes)) == 1:
            whole = x.view(count, -1, x.shape[1])
            own = [state.unsqueeze(0) for state in before]
            y, *after = torch.lstm(whole, own, *options, True) if len(own) > 1 else torch.gru(whole, own[0], *options, True)
            return y.flatten(0, 1), tuple(state.squeeze(0) for state in after)
        order, spots, sizes = _steps(batch.sizes)
        rows, index = (torch.tensor(one, dtype=torch.int64, device=x.device) for one in (order, spots))
        own, counts = [state[rows].unsqueeze(0) for state in before], torch.tensor(sizes, dtype=torch.int64)
        y, *after = (
            torch.lstm(x[index], counts, own, *options) if len(own) > 1 else torch.gru(x[index], counts, own[0], *options)
        )
        whole = torch.empty_like(y).index_copy(0, index, y)
        return whole, tuple(old.index_copy(0, rows, new.squeeze(0)) for old, new in zip(before, after, strict=True))

    def _reference(
        self, x: Tensor, batch: Batch, weights: Sequence[Tensor], before: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs, states = [], []
        for s, tokens in enumerate(torch.split(x, list(batch.sizes))):
            y, after = self.formula(tokens, *weights, tuple(state[s] for state in before))
            outputs.append(y)
            states.append(after)
        return torch.cat(outputs), tuple(torch.stack(own) for own in zip(*states, strict=True))


def _steps(sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Packed sequences as PyTorch's recurrent layers want them, longest first and step by step: the sequences with tokens in
    that order, the place of each step's tokens among the packed ones, and how many sequences each step has.
    """
    starts = [sum(sizes[:s]) for s in range(len(sizes))]
    order = sorted((s for s, size in enumerate(sizes) if size), key=lambda s: -sizes[s])
    spots, counts = [], []
    for step in range(max(sizes)):
        here = [starts[s] + step for s in order if sizes[s] > step]
        spots += here
        counts.append(len(here))
    return order, spots, counts
