"""Which keys each head group sees, as numbers that kernels read while running.

lower(i) = floor((i + shift) / align) * align - shift - back
upper(i) = i + 1                                                       causal
         = (floor((i + shift) / align) + 1) * align - shift + ahead    otherwise
visible(i, j) = j in [lower(i), upper(i))  for any near
              or j < sink
              or (i - j) % n == 0          for any stride n > 0
              or |floor(i / n) - floor(j / n)| in {0, 1, 2, 4, ...}    for any power n > 0
and j <= i if causal
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from .batch import Batch
from .selector import Selector
from .sizes import UNBOUNDED, Number, Share, resolve


@dataclass(frozen=True)
class Near:
    """Keys around the query: its block of `align` (blocks begin `shift` earlier), `back` before, `ahead` after.

    A share in `shift` is of `align`, rounded up; other shares are of the length.
    """

    align: Number = 1
    shift: Number = 0
    back: Number = 0
    ahead: Number = 0


@dataclass(frozen=True)
class HeadGroup:
    """KV heads first..last (both included) and the keys that their queries see.

    choices  what content adds to them, each by a selector
    visible  the intervals in plain tensors, visible(i [n, 1], j [1, L], length) -> bool [n, L]; `reference` asks it
    """

    first: int
    last: int
    sink: Number = 0
    near: tuple[Near, ...] = ()
    strides: tuple[int, ...] = ()
    powers: tuple[int, ...] = ()
    choices: tuple[Selector, ...] = ()
    visible: Callable[[Tensor, Tensor, int], Tensor] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Form:
    """What a kernel is compiled for: how many intervals, strides and powers a row has, and whether the future is hidden."""

    nears: int
    strides: int
    powers: int
    causal: bool

    @classmethod
    def of(cls, groups: Sequence[HeadGroup], causal: bool) -> Form:
        """The smallest form in which every one of `groups` fits."""
        return cls(
            max([0, *(len(group.near) for group in groups)]),
            max([0, *(len(group.strides) for group in groups)]),
            max([0, *(len(group.powers) for group in groups)]),
            causal,
        )

    @property
    def width(self) -> int:
        """R, the numbers in a row: sink; align, shift, back, ahead of each near; strides; powers."""
        return 1 + 4 * self.nears + self.strides + self.powers


FULL = Near(back=UNBOUNDED, ahead=UNBOUNDED)
"""Every earlier key, and every later one where the form is not causal."""

EMPTY = (1, 0, -1, -1)
"""align, shift, back, ahead of an interval that holds no key: it fills rows with fewer intervals than the form has."""


def row(group: HeadGroup, form: Form, length: int) -> tuple[int, ...]:
    """The R numbers of one group for a sequence of `length` tokens; absent strides and powers are 0."""
    near = []
    for part in group.near:
        align = resolve(part.align, length)
        near += [align, _shift(part.shift, align), resolve(part.back, length), resolve(part.ahead, length)]
    near += EMPTY * (form.nears - len(group.near))
    strides = group.strides + (0,) * (form.strides - len(group.strides))
    powers = group.powers + (0,) * (form.powers - len(group.powers))
    return (resolve(group.sink, length), *near, *strides, *powers)


def _shift(shift: Number, align: int) -> int:
    """A share of a block is rounded up, so that what the blocks begin later by is rounded down."""
    return align - int(align * (100 - shift.percent) / 100) if isinstance(shift, Share) else shift


def has_shares(groups: Sequence[HeadGroup]) -> bool:
    """Whether any number of `groups` depends on the length of a sequence."""
    return any(
        isinstance(number, Share)
        for group in groups
        for number in (group.sink, *(number for near in group.near for number in (near.align, near.back, near.ahead)))
    )


class HeadGroups(tuple[HeadGroup, ...]):
    """The head groups of a launch, which keep the numbers of their rows: every call asks for them."""

    shares: bool
    made: dict[tuple[int, int, int, torch.device], Tensor]

    def __new__(cls, groups: Iterable[HeadGroup]) -> HeadGroups:
        """`groups` cover the KV heads in order."""
        made = super().__new__(cls, groups)
        made.shares, made.made = has_shares(made), {}
        return made


def rows(groups: tuple[HeadGroup, ...], form: Form, batch: Batch) -> Tensor:
    """The numbers of every sequence and KV head, [S, G, R] int32 on the batch's device. `groups` cover the KV heads in order.

    Without shares the [G, R] numbers are made once per device and expanded; with shares they follow each sequence's total.
    """
    device = batch.positions.device
    if groups.shares if isinstance(groups, HeadGroups) else has_shares(groups):
        table = _table if torch.compiler.is_compiling() else _kept
        return table(groups, form, batch.totals, device)
    return fixed_rows(groups, form, device).expand(batch.sequences, -1, -1)


def fixed_rows(groups: tuple[HeadGroup, ...], form: Form, device: torch.device) -> Tensor:
    """The rows [1, G, R] of groups without shares; `HeadGroups` keep them, and a compiled model reads them as constants."""
    if not isinstance(groups, HeadGroups):
        return _table(groups, form, (0,), device)
    key = (form.nears, form.strides, form.powers, device)
    if key in groups.made:
        return groups.made[key]
    if torch.compiler.is_compiling():  # nothing of a compiled graph may outlive it
        return _table(groups, form, (0,), device)
    with torch.inference_mode(False):  # a later call may train
        groups.made[key] = _table(groups, form, (0,), device)
    return groups.made[key]


def _table(groups: tuple[HeadGroup, ...], form: Form, lengths: tuple[int, ...], device: torch.device) -> Tensor:
    heads = [group for group in groups for _ in range(group.first, group.last + 1)]
    table = [[row(group, form, length) for group in heads] for length in lengths]
    return torch.tensor(table, dtype=torch.int32, device=device).view(len(lengths), len(heads), form.width)


_kept = lru_cache(maxsize=64)(torch.inference_mode(False)(_table))
"""`_table`, for the layers of one call."""
