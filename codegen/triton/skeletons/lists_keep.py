"""The exact best units of a row of scores, ties to the lowest number (lists_choose.py launches this)."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import lower, read_row
from attnc.codegen.triton.skeletons.lists_scores import last_of, rows_of, slot_of


@triton.jit
def unit_keys(
    scores, unit, units, last, numbers,
    UNIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, TOUCHED: tl.constexpr, FOLD: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Of some units: whole numbers in the order of their scores (0: no candidate), which are shown, which scores are NaN."""
    begin = unit * UNIT
    first = tl.maximum((begin - SPAN + STEP) // STEP, 0)
    end_run = (begin + UNIT - 1) // STEP
    complete = (unit < units) & (begin + UNIT <= last + 1)
    candidate = unit < 0
    total = tl.full(unit.shape, float("-inf") if FOLD == "max" else 0.0, tl.float32)
    broken = unit < 0
    for step in tl.static_range(0, TOUCHED):
        one = first + step
        there = complete & (one <= end_run) & (one * STEP + SPAN <= last + 1)
        score = tl.load(scores + slot_of(one, units, UNIT, STEP), mask=there, other=float("-inf") if FOLD == "max" else 0.0)
        total = tl.maximum(total, score) if FOLD == "max" else total + score
        broken |= score != score
        candidate |= there
    shown = unit < 0
    if OVERLAP != "ranked":
        nearest = lower(numbers, last)
        end = tl.minimum(begin + UNIT, last + 1)
        shown = (begin <= last) & ((begin >= nearest) | (end <= numbers[0]) | (nearest <= numbers[0]))
    ranked = candidate & (shown == 0)
    return tl.where(ranked, number_of(total), 0), shown & (unit < units), broken & candidate


@triton.jit
def number_of(score):
    """A whole number, 0 to 2^32, in the order of a score."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0 counts as 0
    return tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def score_of(number):
    """The score of a number, endless ones cut off."""
    bits = number.to(tl.uint32).to(tl.int32, bitcast=True)
    score = tl.where(bits < 0, bits ^ -2147483648, ~bits).to(tl.float32, bitcast=True)
    return tl.minimum(tl.maximum(score, -3.4e38), 3.4e38)


@triton.jit
def between(low, high, turn):
    """A number above low and below high: in the middle of their scores, every third time in the middle of the numbers.

    Scores that lie evenly are cut in half by the first, whatever scores there are by the second.
    """
    middle = number_of(score_of(low) * 0.5 + score_of(high - 1) * 0.5).to(tl.int64)
    middle = tl.where(turn % 3 == 2, (low + high) // 2, middle)
    return tl.minimum(tl.maximum(middle, low + 1), high - 1)


@triton.jit
def least_kept(keys, want):
    """The greatest number that at least `want` keys reach, or one that `want` reach; keys of 0 are none."""
    low = tl.min(tl.where(keys > 0, keys, 4294967295), 0).to(tl.int64)
    high = tl.max(keys, 0).to(tl.int64) + 1
    reached = tl.sum((keys > 0).to(tl.int32), 0)
    low = tl.where(want > 0, low, high)
    turn = 0
    while (high - low > 1) & (reached != want):
        middle = between(low, high, turn)
        count = tl.sum((keys >= middle.to(tl.uint32)).to(tl.int32), 0)
        low = tl.where(count >= want, middle, low)
        reached = tl.where(count >= want, count, reached)
        high = tl.where(count >= want, high, middle)
        turn += 1
    return low


@triton.jit
def best_of(keys, want):
    """Which keys are the best so many, ties to the first."""
    least = least_kept(keys, want).to(tl.uint32)
    equal = (keys == least) & (want > 0)
    above = (keys > least) & (want > 0)
    spare = want - tl.sum(above.to(tl.int32), 0)
    take = above | equal
    if tl.sum(equal.to(tl.int32), 0) > spare:
        take = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= spare))
    return take


@triton.jit
def keep_row(
    here, index, counts, want, numbers, last, place, units, most,
    UNIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, TOUCHED: tl.constexpr, FOLD: tl.constexpr,
    OVERLAP: tl.constexpr, MANY_BLOCKS: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """Leaves the best units of one row of scores, in rising order, and how many they are."""
    unit = tl.arange(0, BLOCK_U)
    if not MANY_BLOCKS:
        keys, shown, broken = unit_keys(here, unit, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
        used = tl.sum(shown.to(tl.int32), 0)
        bad = tl.sum(broken.to(tl.int32), 0)
        ranked = tl.sum((keys > 0).to(tl.int32), 0)
        want = tl.minimum(tl.maximum(want - (used if OVERLAP == "counted" else 0), 0), tl.minimum(ranked, most))
        take = best_of(keys, want)
        at = tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(index + place * most + at, unit, mask=take & (at < most))
    else:
        blocks = tl.cdiv(tl.minimum(units, last // UNIT + 1), BLOCK_U)
        used = 0
        bad = 0
        ranked = 0
        for block in tl.range(0, blocks):
            some = block * BLOCK_U + unit
            keys, shown, broken = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
            used += tl.sum(shown.to(tl.int32), 0)
            bad += tl.sum(broken.to(tl.int32), 0)
            ranked += tl.sum((keys > 0).to(tl.int32), 0)
        want = tl.minimum(tl.maximum(want - (used if OVERLAP == "counted" else 0), 0), tl.minimum(ranked, most))
        least = tl.zeros([], tl.int64)
        for turn in tl.range(0, 32):
            trial = least | (tl.full([], 1, tl.int64) << (31 - turn))
            reached = 0
            for block in tl.range(0, blocks):
                some = block * BLOCK_U + unit
                keys, _, _ = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
                reached += tl.sum((keys >= trial.to(tl.uint32)).to(tl.int32), 0)
            least = tl.where(reached >= want, trial, least)
        spare = want
        for block in tl.range(0, blocks):
            some = block * BLOCK_U + unit
            keys, _, _ = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
            spare -= tl.sum((keys > least.to(tl.uint32)).to(tl.int32), 0)
        begin = 0
        for block in tl.range(0, blocks):
            some = block * BLOCK_U + unit
            keys, _, _ = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
            equal = keys == least.to(tl.uint32)
            take = (keys > least.to(tl.uint32)) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= spare))
            at = begin + tl.cumsum(take.to(tl.int32), 0) - 1
            tl.store(index + place * most + at, some, mask=take & (at < most))
            begin += tl.sum(take.to(tl.int32), 0)
            spare -= tl.sum(equal.to(tl.int32), 0)
    tl.store(counts + place, tl.where(bad > 0, -1, want))


@triton.jit(do_not_specialize=["all_rows", "row_count", "many", "row_from", "at_once", "width", "units", "most", "row_stride"])
def keep_kernel(
    scores, index, counts, wanted, interval_rows, offsets, past, row_begin, all_rows, row_count, many, row_from, at_once, width,
    units, most, row_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, TOUCHED: tl.constexpr,
    FOLD: tl.constexpr, OVERLAP: tl.constexpr, SHARED: tl.constexpr, MANY_BLOCKS: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    own_row = tl.program_id(0) % row_count
    sequence = tl.program_id(0) // row_count
    chooser = tl.program_id(1)
    row = row_from + own_row
    if (row >= rows_of(sequence, offsets, past, many)) | (tl.load(wanted + sequence) < 0):
        return
    last = last_of(sequence, row, offsets, past, many)
    group = chooser // GROUP if SHARED == "head" else chooser
    numbers = read_row(interval_rows + sequence * row_stride + group * ROW)
    sequences = tl.num_programs(0) // row_count
    here = scores + ((chooser * sequences + sequence).to(tl.int64) * at_once + own_row) * width
    place = chooser.to(tl.int64) * all_rows + tl.load(row_begin + sequence) + row
    keep_row(
        here, index, counts, tl.load(wanted + sequence), numbers, last, place, units, most, UNIT, SPAN, STEP, TOUCHED, FOLD,
        OVERLAP, MANY_BLOCKS, BLOCK_U,
    )  # fmt: skip
