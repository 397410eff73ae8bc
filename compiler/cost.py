"""Seconds from work: a roofline over a device table. Mixes count, devices time; neither knows the other.

seconds = max(matrix flops / (peak x efficiency), exponentials / rate, bytes / (bandwidth x efficiency)) + launches x launch
"""

from __future__ import annotations

from attnc.compiler import intervals as arithmetic
from attnc.compiler.device import Device
from attnc.compiler.graph import HeadGroup, Mix, Variant
from attnc.compiler.intervals import Intervals
from attnc.compiler.spec import Phase
from attnc.compiler.value import Value

QUERY_TILE = 128
KEY_TILE = 64
TORCH_QUERY_BLOCK = 256
TORCH_LAUNCHES_PER_BLOCK = 8


class Workload(Value):
    """What is priced: `batch` sequences of `length` tokens each, with `width` bytes a number."""

    length: int
    batch: int = 1
    width: int = 2


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


def tiled(mix: Mix, variant: Variant, phase: Phase, load: Workload) -> Work:
    """One launch that visits only key tiles with a visible key. Training counts the backward: 3.5 times the flops."""
    queries, keys = _sizes(phase, load)
    pairs = read = 0.0
    ratio = _ratio(mix)
    for group in variant.groups:
        numbers = _numbers(group, load)
        heads = (group.last - group.first + 1) * ratio
        edges = len(numbers.near) * 2 + len(numbers.strides) + len(numbers.powers) + (numbers.sink != 0)
        waste = 0 if phase == "decode" else queries * edges * (QUERY_TILE + KEY_TILE) / 4
        shown = arithmetic.pairs(numbers, queries, keys)
        pairs += heads * min(queries * keys, shown + waste)
        read += (group.last - group.first + 1) * min(keys, shown)
    return _work(mix, phase, load, pairs=pairs, read=read, launches=2 if phase == "decode" else 1)


def dense(mix: Mix, variant: Variant, phase: Phase, load: Workload) -> Work:
    """Every query against every key, scores written out: what the reference does."""
    queries, keys = _sizes(phase, load)
    heads = (mix.last - mix.first + 1) * _ratio(mix)
    work = _work(
        mix,
        phase,
        load,
        pairs=heads * queries * keys,
        read=(mix.last - mix.first + 1) * keys,
        launches=12 * len(variant.groups),
    )
    scores = 8 * 4 * load.batch * heads * queries * keys
    return work.model_copy(update={"bytes": work.bytes + scores})


def blocked(mix: Mix, variant: Variant, phase: Phase, load: Workload) -> Work:
    """Like `tiled`, with a handful of launches for every block of queries and every group of heads."""
    work = tiled(mix, variant, phase, load)
    queries, _ = _sizes(phase, load)
    blocks = -(-queries // TORCH_QUERY_BLOCK)
    return work.model_copy(update={"launches": TORCH_LAUNCHES_PER_BLOCK * blocks * load.batch * len(variant.groups)})


def is_plain_causal(variant: Variant) -> bool:
    """Whether every head sees all earlier tokens, for which libraries have a kernel of their own."""
    return all(
        group.intervals is not None and arithmetic.is_full(group.intervals) and group.intervals.causal
        for group in variant.groups
    )


def _work(mix: Mix, phase: Phase, load: Workload, *, pairs: float, read: float, launches: int) -> Work:
    queries, _ = _sizes(phase, load)
    key, value = mix.attributes.head_dim, mix.attributes.value_dim
    heads = (mix.last - mix.first + 1) * _ratio(mix)
    passes = 3.5 if phase == "train" else 1.0
    moved = heads * queries * (key + value) + read * (key + value)
    return Work(
        flops=2 * load.batch * pairs * (key + value) * passes,
        exponentials=load.batch * pairs * (2 if phase == "train" else 1),
        bytes=load.batch * load.width * moved * (3 if phase == "train" else 1),
        launches=launches,
    )


def _numbers(group: HeadGroup, load: Workload) -> Intervals:
    assert group.intervals is not None, "only static key sets are priced by tiles"
    return arithmetic.resolve(group.intervals, load.length)


def _ratio(mix: Mix) -> int:
    return mix.attributes.heads // mix.attributes.kv_heads


def _sizes(phase: Phase, load: Workload) -> tuple[int, int]:
    return (1 if phase == "decode" else load.length), load.length
