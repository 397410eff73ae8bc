"""Which units of keys a query keeps: their scores, and the exact best of them, ties to the lowest number.

Rows ask: queries, or means of blocks of queries, `many` to a row. Runs of keys stand for units: a run is a key, a mean of SPAN
keys, or their bounds in every channel, and one begins every STEP keys. `scores_kernel` multiplies a tile of rows by a tile of
runs, for all heads that share a choice, and pools these heads' scores; `sums_kernel` first finds the logarithm of the sum of
exponentials where a score is a share of the mass. `keep_kernel` folds the runs that touch a unit to one score, and keeps the
best: it counts which scores reach a bound, and halves what lies between two bounds until as many reach one as stay. Scores are
written for as many rows at once as fit in ROOM; there is never one for every query and key.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_keep import keep_kernel
from attnc.codegen.triton.skeletons.lists_scores import scores_kernel, sums_kernel
from attnc.codegen.triton.skeletons.scan_parts import architecture, run

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row of numbers holds
HEAD_WIDTH = 64  # of queries and keys
GROUP = 1  # query heads for each KV head
UNIT = 64  # keys
RUNS = (64, 64)  # span and step
COARSE = None  # span and step of the runs whose mass is the whole, where these are not the same
BOUNDS = False  # runs are bounds
SHARES = False  # a score is a share of the mass
SHARED = "group"  # who shares a choice: nobody ("head"), the heads of a KV head, or all ("layer")
POOL = "sum"  # of their scores
FOLD = "max"  # of runs that touch a unit
OVERLAP = "ranked"  # what becomes of units that the intervals show
CAP = False
SELECTOR = ()  # the runtime's words for all these
BLOCKS = {  # (architecture, bytes of an element): lines and runs of a tile, warps, pipeline stages
    ("any", 2): (64, 64, 4, 2),
    ("any", 4): (32, 32, 4, 1),
}
MOST_UNITS = 4096  # whose scores a program holds at once
UNITS_OF_WARP = 512
ENOUGH = 1024  # programs
MOST_SPLITS = 16  # parts of the sum of exponentials of a row, where rows are few
TURNS = 8  # tiles of runs that a program scores, where there are programs enough
ROOM = 2**26  # scores

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(2**30)  # "no bound"


def settings(lines, block_k, warps, stages, splits=1):
    """The compile-time arguments of the kernels that score: of `sums_kernel` over coarse and over own runs, `scores_kernel`.

    splits: parts of each sum.
    """
    common = {
        "GROUP": GROUP,
        "MEMBERS": triton.next_power_of_2(GROUP),
        "D": HEAD_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_R": max(lines, triton.next_power_of_2(GROUP)),
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }
    span, step = RUNS
    coarse = {**common, "SPAN": (COARSE or RUNS)[0], "STEP": (COARSE or RUNS)[1], "ONLY_BEFORE": 0}
    own = {**common, "SPAN": span, "STEP": step, "ONLY_BEFORE": COARSE[0] if COARSE else 0}
    more = {
        "UNIT": UNIT,
        "SPAN": span,
        "STEP": step,
        "BOUNDS": BOUNDS,
        "SHARES": SHARES,
        "SPLITS": splits,
        "SHARED": SHARED,
        "POOL": POOL,
    }
    return coarse, own, {**common, **more}


def keep_settings(units):
    """The compile-time arguments of `keep_kernel` for so many units."""
    nears, strides, powers, _ = FORM
    span, step = RUNS
    block = min(MOST_UNITS, max(64, triton.next_power_of_2(units)))
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "UNIT": UNIT,
        "SPAN": span,
        "STEP": step,
        "TOUCHED": (UNIT + span - 2) // step + 1,
        "FOLD": FOLD,
        "OVERLAP": OVERLAP,
        "SHARED": SHARED,
        "MANY_BLOCKS": units > MOST_UNITS,
        "BLOCK_U": block,
        "num_warps": max(1, block // UNITS_OF_WARP),
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Kernels that `choose` may launch, with their compile-time arguments."""
    coarse, own, scored = settings(*BLOCKS[architecture, element_size])
    sums = ((sums_kernel, coarse), *(((sums_kernel, own),) if COARSE else ())) if SHARES else ()
    return (*sums, (scores_kernel, scored), (keep_kernel, keep_settings(MOST_UNITS)), (keep_kernel, keep_settings(2**17)))


def choose(q, runs, upper, coarse, interval_rows, batch, scale, cap, wanted, asked, units, most, *, blocks=None, room=ROOM):
    """The units that rows keep: index [C, r, most] and count [C, r] int32; index is in rising order up to count.

    q [r, H, D], who asks, rows of the sequences one after another; runs, upper, coarse: (flat keys, begin [S, G] int64, stride)
    of runs, of their upper bounds and of coarser runs, or None; interval_rows [S, G, R] int32; batch: offsets [S + 1] and past
    [S] int64; scale [H] fp32; cap or None; wanted [S] int32, below 0 where nothing is chosen, and nothing written; asked:
    row_begin [S] int64, `many` positions to a row, the most rows of a sequence; units: at least the most units of a text; most:
    of a list. count is -1 where a candidate's score is NaN.
    """
    all_rows, heads, width = q.shape
    sequences, kv_heads, _ = interval_rows.shape
    row_begin, many, rows = asked
    assert (width, heads) == (HEAD_WIDTH, kv_heads * GROUP)
    assert q.stride(2) == 1
    assert (cap is not None) == CAP
    assert (upper is not None, coarse is not None) == (BOUNDS, COARSE is not None)
    lines, block_k, *rest = blocks or BLOCKS[architecture(q.device), q.element_size()]
    splits = MOST_SPLITS if SHARES and rows <= 16 and rows * sequences * kv_heads < ENOUGH else 1
    of_coarse, of_own, scored = settings(lines, block_k, *rest, splits)
    choosers = {"head": heads, "group": kv_heads, "layer": 1}[SHARED]
    index = torch.empty(choosers, all_rows, most, dtype=torch.int32, device=q.device)
    counts = torch.empty(choosers, all_rows, dtype=torch.int32, device=q.device)
    span, step = RUNS
    runs_of = max(1, (units * UNIT - span) // step + 1)
    width = units * (UNIT // step) if UNIT % step == 0 else runs_of
    at_once = max(1, min(rows, room // max(1, choosers * sequences * width)))
    scores = torch.empty(choosers * sequences * at_once * width, dtype=torch.float32, device=q.device)
    sums = torch.empty(all_rows, heads, splits, dtype=torch.float32, device=q.device) if SHARES else scores
    k, k_begin, k_stride = runs
    bound = 0.0 if cap is None else cap
    token_stride, head_stride, _ = q.stride()
    places = batch.offsets, batch.past, row_begin
    strides = token_stride | head_stride | k_stride
    key = (q.device, q.dtype, k.dtype, lines, block_k, *rest, splits)
    tall = scored["BLOCK_R"] // scored["MEMBERS"]
    for row_from in range(0, rows, at_once):
        tiles = -(-min(at_once, rows - row_from) // tall)
        ways = ([("coarse", coarse or runs, of_coarse)] + ([("own", runs, of_own)] if COARSE else [])) if SHARES else []
        for name, (flat, begin, stride), constants in ways:
            numbers = bound, kv_heads, tiles, splits, many, row_from, token_stride, head_stride, stride, begin.stride(0)
            tensors = (q, flat, sums, wanted, *places, begin, scale)
            programs = sequences * kv_heads * tiles * splits
            run(sums_kernel, programs, tensors, numbers, strides | stride, (*key, name), lambda given=constants: given)
        sets, run_tiles = 1 if SHARED == "layer" else kv_heads, -(-runs_of // block_k)
        turns = TURNS if sequences * sets * tiles * run_tiles > ENOUGH * TURNS else 1
        run_tiles = -(-run_tiles // turns)
        tensors = (q, k, k if upper is None else upper[0], sums, scores, wanted, *places, k_begin, scale)
        numbers = (
            bound, kv_heads, sets, tiles, run_tiles, turns, many, row_from, at_once, width, units, token_stride, head_stride,
            k_stride, k_begin.stride(0),
        )  # fmt: skip
        programs = sequences * sets * tiles * run_tiles
        run(scores_kernel, programs, tensors, numbers, strides, (*key, "scores"), lambda: scored)
        here = min(at_once, rows - row_from)
        constants = keep_settings(units)
        keep_kernel[(sequences * here, choosers)](
            scores, index, counts, wanted, interval_rows, *places, all_rows, here, many, row_from, at_once, width, units, most,
            interval_rows.stride(0), **constants,
        )  # fmt: skip
    return index, counts
