"""Seconds from work: a roofline over a device table. Mixes count, devices time; neither knows the other.

seconds = max(matrix flops / (peak x efficiency), exponentials / rate, bytes / (bandwidth x efficiency)) + launches x launch
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from attnc.compiler import intervals as arithmetic
from attnc.compiler.device import Device
from attnc.compiler.families import Selector
from attnc.compiler.graph import Guard
from attnc.compiler.intervals import Intervals
from attnc.compiler.spec import Phase
from attnc.compiler.value import Value

QUERY_TILE = 128
KEY_TILE = 64
TORCH_QUERY_BLOCK = 256
TORCH_LAUNCHES_PER_BLOCK = 8
CHOOSING_LAUNCHES = 30
LISTED_QUERIES = 64
LISTED_LAUNCHES = 24
SCORED, SORTED = 8, 64
"""Bytes that are moved of each score: of a head's, written and read; of a chooser's: written, sorted twice with its number,
compared and counted."""


class Workload(Value):
    """What is priced: `batch` sequences of `length` tokens each, with `width` bytes a number."""

    length: int
    batch: int = 1
    width: int = 2


class Seen(NamedTuple):
    """So many KV groups side by side that see the same keys; None where these are no set of positions.

    `selectors`: what content chooses beside the intervals.
    """

    kv_heads: int
    intervals: Intervals | None
    selectors: tuple[Selector, ...] = ()

    def listed(self, length: int) -> int:
        """Tokens that a query's lists hold at most."""
        return sum(selector.kept(length) for selector in self.selectors)


class Alternative(NamedTuple):
    """What a launch does while all guards hold."""

    guards: tuple[Guard, ...]
    groups: tuple[Seen, ...]


class Launch(NamedTuple):
    """All of a mix that its price depends on, so that equal ones are priced once; the groups of each variant cover its heads.

    `ratio`: query heads a KV head. `unsaid`: why the softmax family cannot say it. `cap`, `sink_logit`: whether logits are
    capped and each head has one more. `learned`: whether it has keys of its own. `ring`: whether decoding drops old ones.
    `softplus`: whether masses are summed first, which reads the keys, and passes back through them, once more. `latent`: the
    width of what keys and values are expanded from, 0 if they are kept; `rotated`: of the keys that are kept beside it.
    """

    ratio: int
    head_dim: int
    value_dim: int
    unsaid: str | None
    variants: tuple[Alternative, ...]
    cap: bool = False
    sink_logit: bool = False
    learned: bool = False
    ring: bool = False
    softplus: bool = False
    latent: int = 0
    rotated: int = 0

    @property
    def scored(self) -> bool:
        """Whether its softmax is more than that of products."""
        return self.cap or self.sink_logit

    @property
    def kv_heads(self) -> int:
        """The KV heads of all groups."""
        return sum(group.kv_heads for group in self.variants[0].groups)


class Work(Value):
    """What must be done, whatever does it."""

    flops: float
    exponentials: float
    bytes: float
    launches: int = 1


def seconds(work: Work, device: Device, efficiency: float, *, matrix: bool = True) -> float:
    """The roofline. `matrix` false: the vector units do the flops."""
    peak = device.matrix_flops if matrix else device.vector_flops
    roof = max(
        work.flops / (peak * efficiency), work.exponentials / device.exponentials, work.bytes / (device.bandwidth * efficiency)
    )
    return roof + work.launches * device.launch


def tiled(
    launch: Launch,
    groups: tuple[Seen, ...],
    phase: Phase,
    load: Workload,
    tiles: tuple[int, int] = (QUERY_TILE, KEY_TILE),
) -> Work:
    """One launch that visits only key tiles with a visible key. Training counts the backward: 3.5 times the flops."""
    queries, keys = _sizes(phase, load)
    pairs = read = 0.0
    for group in groups:
        numbers = _numbers(group, load)
        edges = len(numbers.near) * 2 + len(numbers.strides) + len(numbers.powers) + (numbers.sink != 0)
        waste = 0 if phase == "decode" else queries * edges * sum(tiles) / 4
        shown = _shown(group, queries, keys, load)
        pairs += group.kv_heads * launch.ratio * min(queries * keys, shown + waste)
        read += group.kv_heads * min(keys, shown)
    launches = 2 if phase == "decode" else 1
    return _work(launch, phase, load, pairs=pairs, read=read, launches=launches, twice=launch.softplus)


def absorbed(launch: Launch, groups: tuple[Seen, ...], load: Workload) -> Work:
    """A query that reads latents and rotated keys as they are kept, the same for all heads, after it was multiplied by half of
    what expands them and before the other half makes outputs.
    """
    wide = launch._replace(head_dim=launch.latent + launch.rotated, value_dim=launch.latent, latent=0)
    pairs = sum(group.kv_heads * launch.ratio * _shown(group, 1, load.length, load) for group in groups)
    read = max(_shown(group, 1, load.length, load) for group in groups)
    work = _work(wide, "decode", load, pairs=pairs, read=read, launches=TORCH_LAUNCHES_PER_BLOCK * load.batch * len(groups))
    halves = launch.head_dim - launch.rotated + launch.value_dim
    around = 2 * load.batch * launch.kv_heads * launch.ratio * launch.latent * halves
    return replace(work, flops=work.flops + around, launches=work.launches + 2)


def dense(launch: Launch, groups: tuple[Seen, ...], phase: Phase, load: Workload) -> Work:
    """Every query against every key, scores written out: what the reference does."""
    queries, keys = _sizes(phase, load)
    heads = launch.kv_heads * launch.ratio
    pairs, read = heads * queries * keys, launch.kv_heads * keys
    work = _work(launch, phase, load, pairs=pairs, read=read, launches=12 * len(groups))
    scores = 8 * 4 * load.batch * heads * queries * keys
    return replace(work, bytes=work.bytes + scores)


def blocked(launch: Launch, groups: tuple[Seen, ...], phase: Phase, load: Workload) -> Work:
    """Like `tiled`, with a handful of launches for every block of queries and every group of heads."""
    work = tiled(launch, groups, phase, load)
    queries, _ = _sizes(phase, load)
    blocks = -(-queries // TORCH_QUERY_BLOCK)
    return replace(work, launches=TORCH_LAUNCHES_PER_BLOCK * blocks * load.batch * len(groups))


def listed(launch: Launch, groups: tuple[Seen, ...], phase: Phase, load: Workload) -> Work:
    """What PyTorch does with lists: keys are copied side by side and read. A decoding query reads its own list; many read under
    a mask what any of them keeps, which may be all keys.
    """
    work = blocked(launch, groups, phase, load)
    queries, keys = _sizes(phase, load)
    heads = launch.kv_heads * launch.ratio
    blocks = -(-queries // LISTED_QUERIES)
    if phase == "decode":
        copied = float(sum(_choosers(group, launch) * min(keys, group.listed(keys)) for group in groups))
    else:
        pairs = heads * queries * (keys + 1) / 2
        whole = _work(launch, phase, load, pairs=pairs, read=launch.kv_heads * keys, launches=1)
        work = replace(work, flops=whole.flops, exponentials=whole.exponentials)
        copied = launch.kv_heads * blocks * keys / 2
    moved = 2 * load.batch * load.width * copied * (launch.head_dim + launch.value_dim) * (2 if phase == "train" else 1)
    return replace(work, bytes=work.bytes + moved, launches=LISTED_LAUNCHES * blocks * load.batch * len(groups))


def choosing(launch: Launch, groups: tuple[Seen, ...], phase: Phase, load: Workload) -> Work:
    """Scoring what stands for units, sorting the scores and writing lists, for all that ask; the choice has no gradient."""
    queries, keys = _sizes(phase, load)
    flops = exponentials = moved = 0.0
    blocks = 0
    for group in groups:
        heads = group.kv_heads * launch.ratio
        for selector in group.selectors:
            rows = selector.rows(queries)
            scores = heads * rows * selector.runs(keys)
            sorted_scores = scores * selector.choosers(group.kv_heads, launch.ratio) / heads
            blocks += -(-rows // TORCH_QUERY_BLOCK)
            flops += 2 * scores * launch.head_dim * (2 if selector.keys == "bounds" else 1)
            exponentials += scores if selector.score == "softmax" else 0
            moved += load.width * group.kv_heads * launch.head_dim * selector.runs(keys)
            moved += SCORED * scores + SORTED * sorted_scores
    return Work(
        flops=load.batch * flops,
        exponentials=load.batch * exponentials,
        bytes=load.batch * moved,
        launches=CHOOSING_LAUNCHES * blocks * load.batch,
    )


def _choosers(group: Seen, launch: Launch) -> int:
    """How many copies of a group's listed keys are made."""
    each = any(selector.shared == "head" for selector in group.selectors)
    return group.kv_heads * (launch.ratio if each else 1)


def joining(launch: Launch, phase: Phase, load: Workload) -> Work:
    """Heads that several calls serve: queries, keys, values and outputs of each are copied once, gradients likewise."""
    queries, keys = _sizes(phase, load)
    heads = launch.kv_heads * launch.ratio
    numbers = heads * queries * (launch.head_dim + launch.value_dim)
    if phase != "decode":  # a cache is read where it lies
        numbers += launch.kv_heads * keys * (launch.head_dim + launch.value_dim)
    moved = 2 * load.batch * load.width * numbers * (2 if phase == "train" else 1)
    return Work(flops=0.0, exponentials=0.0, bytes=moved, launches=8 if phase == "train" else 4)


def is_plain_causal(groups: tuple[Seen, ...]) -> bool:
    """Whether every head sees all earlier tokens, for which libraries have a kernel of their own."""
    return all(
        not group.selectors and group.intervals is not None and arithmetic.is_full(group.intervals) and group.intervals.causal
        for group in groups
    )


def _work(
    launch: Launch, phase: Phase, load: Workload, *, pairs: float, read: float, launches: int, twice: bool = False
) -> Work:
    queries, _ = _sizes(phase, load)
    key, value = launch.head_dim, launch.value_dim
    heads = launch.kv_heads * launch.ratio
    passes = 3.5 if phase == "train" else 1.0
    again = key * twice  # a pass over the keys that needs no values
    cached = read / launch.kv_heads if launch.ring else load.length
    latent = launch.latent * cached if phase == "decode" else 0.0  # elsewhere the new tokens' keys are made once, as all are
    made = launch.kv_heads * cached * (key + value) if latent else 0.0
    moved = latent + made
    moved += heads * queries * (key + value + again) + read * (key + value + again)
    return Work(
        flops=2 * load.batch * (pairs * (key + value + again) * passes + made * launch.latent),
        exponentials=load.batch * pairs * (2 if phase == "train" else 1) * (1 + twice),
        bytes=load.batch * load.width * moved * (3 if phase == "train" else 1),
        launches=launches * (1 + twice),
    )


def _shown(group: Seen, queries: int, keys: int, load: Workload) -> float:
    """Visible pairs of a group's queries and keys."""
    return min(queries * keys, arithmetic.pairs(_numbers(group, load), queries, keys) + queries * group.listed(keys))


def _numbers(group: Seen, load: Workload) -> Intervals:
    assert group.intervals is not None, "only static key sets are priced by tiles"
    return arithmetic.resolve(group.intervals, load.length)


def _sizes(phase: Phase, load: Workload) -> tuple[int, int]:
    return (1 if phase == "decode" else load.length), load.length
