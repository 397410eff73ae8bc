"""Softmax attention over key intervals, for many queries, on sm_90: what softmax_prefill.py in Triton computes, by its rules.

A program stays on its multiprocessor and walks tiles: 128 queries of one head each, those that see most first. Parties work at
once: one warp finds what there is to do, tiles and which keys each walks, and tells the others in shared memory; one copies
queries, keys and values there (TMA); and two groups of four warps attend 64 queries each (three, where tiles have 192). What is
full and what may be overwritten they tell each other by barriers (mbarriers): every `_full` one is arrived at by who writes or
by the copies, every `_empty` one by the readers, once a group. A party counts through the slots of a ring; a barrier's phase
flips each time around.

Rows behind a sequence's last key belong to someone else, and hold anything: scores against them are hidden, and their values
are overwritten with zeros before anyone reads them.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from attnc.codegen.gluon.skeletons.attending import attend_tiles
from attnc.codegen.gluon.skeletons.launching import architecture, packed_view, run, slots_view, width_of

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
CAP = False
SINK_LOGIT = False
EXPONENT = None
BLOCKS = {  # (architecture, bytes of an element): queries, keys, warps, slots of both, AHEAD, registers, PIN, DIRECT
    ("sm_90", 2): (128, 128, 12, 3, 2, 8, 232, 0, 0),
}

PROCESSORS = {}  # device -> how many multiprocessors it has


@gluon.jit(do_not_specialize=["sequences", "kv_heads", "blocks", "tiles", "k_stride", "v_stride", "row_stride",
                              "k_begin_stride", "v_begin_stride", "cap"])  # fmt: skip
def attend_kernel(
    q_desc, k_desc, v_desc, o_desc, o, lse, rows, offsets, past, stored, base, k_begin, v_begin, pinned, ring, scale,
    sink_logit, cap, sequences, kv_heads, blocks, tiles, k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    FAR: gl.constexpr, CAP: gl.constexpr, RINGS: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr,
    SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr, AHEAD: gl.constexpr, PIN: gl.constexpr, DIRECT: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    batch = offsets, past, sequences, kv_heads, blocks, tiles
    keys = rows, row_stride, stored, base, pinned, ring
    k_place = k_begin, k_begin_stride, k_stride
    v_place = v_begin, v_begin_stride, v_stride
    outputs = o_desc, o, lse
    attend_tiles(
        (q_desc, k_desc, v_desc), outputs, batch, keys, k_place, v_place, scale, sink_logit, cap, ROW, GROUP, D, E, BLOCK_D,
        BLOCK_E, FAR, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT, REGISTERS,
    )  # fmt: skip


def settings(rings, queries, keys, warps, slots, q_slots, ahead, registers, pin, direct):
    """The kernel's compile-time arguments; the party that is launched makes the others."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": width_of(HEAD_WIDTH),
        "BLOCK_E": width_of(VALUE_WIDTH),
        "FAR": strides + powers,
        "CAP": CAP,
        "RINGS": rings,
        "BLOCK_Q": queries,
        "BLOCK_K": keys,
        "SLOTS": slots,
        "Q_SLOTS": q_slots,
        "AHEAD": ahead,
        "PIN": bool(pin),
        "DIRECT": bool(direct),
        "REGISTERS": registers,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def descriptors(constants):
    """Of queries, keys, values and outputs: name -> rows and columns of a block."""
    d, e, keys = width_of(HEAD_WIDTH), width_of(VALUE_WIDTH), constants["BLOCK_K"]
    return {"q_desc": (64, d), "k_desc": (keys, d), "v_desc": (keys, e), "o_desc": (64, e)}


def variants(architecture, element_size):
    """Every kernel that `attend` may launch, with its compile-time arguments."""
    if (architecture, element_size) not in BLOCKS:
        return ()
    return tuple((attend_kernel, settings(rings, *BLOCKS[architecture, element_size])) for rings in (False, True))


def attend(q, part, rows, form, batch, scale, cap=None, sink_logit=None, *, blocks=None):
    """Attention of new queries to one part of the keys; arguments and results as of the function in Triton.

    q, k, v: bfloat16 or float16, of widths that are multiples of 8; scale: from 0 on.
    """
    tokens, heads, width = q.shape
    device, dtype = q.device, q.dtype
    sequences, kv_heads, _ = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None, sink_logit is not None) == (CAP, SINK_LOGIT)
    assert dtype == part.k.dtype == part.v.dtype
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=dtype, device=device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=device)
    chosen = blocks or BLOCKS[architecture(device), q.element_size()]
    count = -(-batch.max_new // chosen[0])
    tiles = count * sequences * heads
    if tiles == 0 or tokens == 0:
        return o, lse
    if device not in PROCESSORS:
        PROCESSORS[device] = torch.cuda.get_device_properties(device).multi_processor_count
    rings = part.rings
    q_block, k_block, v_block, o_block = descriptors({"BLOCK_K": chosen[1]}).values()
    views = (
        packed_view(q, *q_block),
        slots_view(part.k, part.k_stride, HEAD_WIDTH, *k_block),
        slots_view(part.v, part.v_stride, VALUE_WIDTH, *v_block),
        packed_view(o, *o_block),
    )
    sink_logit = scale if sink_logit is None else sink_logit
    tensors = (
        o, lse, rows, batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin, part.pinned, part.ring,
        scale.contiguous(), sink_logit,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, count, tiles, part.k_stride, part.v_stride, rows.stride(0),
        part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    key = (device, dtype, sink_logit.dtype, rings, chosen)
    programs = min(tiles, PROCESSORS[device])
    run(attend_kernel, programs, views, tensors, numbers, key, lambda: settings(rings, *chosen))
    return o, lse
