"""Lists for the cases of kernels that read them: made from a sum of hashes, so that the reference needs none.

Legend: G KV heads; C choosers; r rows of all sequences; m units of the longest list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.codegen.verify.cases import Case, Union, batch
from attnc.compiler.families import Softmax
from attnc.runtime.list_launch import LaunchLists, Taken, row_begins


@dataclass(frozen=True)
class Listed:
    """A `KeySet` (cases.py): what `rest` shows, and for each row of `many` queries a third of the units of so many keys.

    distances: of these the keys at half of all distances; beside: without what `rest` and another list show, of such units
    """

    rest: Union
    unit: int
    many: int
    salt: int = 0
    distances: bool = False
    beside: int = 0

    def row(self, kernel: Softmax, length: int = 0) -> tuple[int, ...]:
        """The numbers that the kernel reads beside the lists."""
        return self.rest.row(kernel, length)

    def sees(self, i: Tensor, j: Tensor, causal: bool, length: int = 0) -> Tensor:
        """[queries, keys] of positions i [queries], j [keys]."""
        row, shown = i[:, None] // self.many, self.rest.sees(i, j, causal, length)
        listed = self.kept(row, j[None, :] // self.unit) & (j[None, :] <= i[:, None])
        if self.distances:
            listed &= self.near_or_far((i[:, None] - j[None, :]).clamp(min=0))
        return listed & ~shown & ~self.taken(row, j[None, :] // self.beside) if self.beside else shown | listed

    def kept(self, row: Tensor, unit: Tensor) -> Tensor:
        """Whether a row's list holds a unit; rows whose number is 1 more than a multiple of 5 keep none."""
        mixed = (row * 7919 + unit * 104729 + self.salt * 31337) % 65521 * 40503 % 65521
        return (mixed % 3 == 0) & (row % 5 != 1)

    def near_or_far(self, back: Tensor) -> Tensor:
        """Whether a distance is chosen."""
        return (back * 40503 + self.salt) % 65521 % 2 == 0

    def taken(self, row: Tensor, unit: Tensor) -> Tensor:
        """Whether the other list has a unit."""
        return (row * 104729 + unit * 7919 + self.salt) % 65521 % 4 == 0

    def reach(self) -> int:
        """Tokens after which no number of it matters any more."""
        return max(self.rest.reach(), self.unit)


@dataclass(frozen=True)
class Chunked:
    """A `KeySet` (cases.py) of keys that stand for chunks of `span` tokens, one begun every `step`.

    A query sees those that it has read whole and of which `rest` shows no token.
    """

    rest: Union
    span: int
    step: int

    def row(self, kernel: Softmax, length: int = 0) -> tuple[int, ...]:
        """The numbers that the kernel reads."""
        return self.rest.row(kernel, length)

    def sees(self, i: Tensor, j: Tensor, causal: bool, length: int = 0) -> Tensor:
        """[queries, chunks] of positions i [queries], chunks j."""
        seen = j[None, :] * self.step + self.span <= i[:, None] + 1
        for t in range(self.span):
            seen &= ~self.rest.sees(i, j * self.step + t, causal, length)
        return seen

    def reach(self) -> int:
        """Tokens after which no number of it matters any more."""
        return self.rest.reach() + self.span


def lists_of(case: Case, sets: Sequence[Listed]) -> LaunchLists:
    """The lists of the case's sequences, one set for each chooser; what lies behind a list's end is no unit at all."""
    many, found = sets[0].many, []
    for size, past in zip(case.sizes, case.pasts, strict=True):
        rows = torch.arange(past // many, -(-(past + size) // many) if size else past // many)
        units = torch.arange(-(-(past + size) // sets[0].unit) + 1)
        found.append(torch.stack([one.kept(rows[:, None], units[None, :]) for one in sets]))
    most = max([1, *(int(one.sum(-1).max()) for one in found if one.numel())])
    index = torch.full((len(sets), sum(one.shape[1] for one in found), most), 2**30, dtype=torch.int32)
    count = torch.zeros(index.shape[:2], dtype=torch.int32)
    begin = 0
    for one in found:
        for chooser, row in ((c, r) for c in range(one.shape[0]) for r in range(one.shape[1])):
            units = one[chooser, row].nonzero()[:, 0]
            index[chooser, begin + row, : len(units)] = units.int()
            count[chooser, begin + row] = len(units)
        begin += one.shape[1]
    device = torch.device(case.device)
    begins, longest = row_begins(batch(case, device), many)
    made = LaunchLists(index.to(device), count.to(device), begins, many, longest)
    return replace(made, distances=_distances(case, sets, device), taken=_taken(case, sets, made))


def _distances(case: Case, sets: Sequence[Listed], device: torch.device) -> Tensor | None:
    if not sets[0].distances:
        return None
    back = torch.arange(max(past + size for size, past in zip(case.sizes, case.pasts, strict=True)))
    chosen = torch.stack([one.near_or_far(back) for one in sets]).to(device, torch.uint8)
    return chosen.unsqueeze(1).repeat(1, len(case.sizes), 1)


def _taken(case: Case, sets: Sequence[Listed], lists: LaunchLists) -> Taken | None:
    if not sets[0].beside:
        return None
    longest = max(past + size for size, past in zip(case.sizes, case.pasts, strict=True))
    units, found = torch.arange(-(-longest // sets[0].beside)), []
    for size, past in zip(case.sizes, case.pasts, strict=True):
        rows = torch.arange(past // lists.many, -(-(past + size) // lists.many) if size else past // lists.many)
        found.append(torch.stack([one.taken(rows[:, None], units[None, :]) for one in sets]))
    table = torch.cat(found, 1).to(lists.index.device, torch.uint8).contiguous()
    return Taken(table, lists.row_begin, lists.many)
