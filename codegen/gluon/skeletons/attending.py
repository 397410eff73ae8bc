"""Who works on a tile of queries: a warp that plans, a warp that copies, and two or three groups of four warps that attend 64
queries each.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from attnc.codegen.gluon.skeletons.consuming import consume
from attnc.codegen.gluon.skeletons.planning import plan
from attnc.codegen.gluon.skeletons.producing import produce
from attnc.codegen.gluon.skeletons.seeing import SHARE
from attnc.codegen.gluon.skeletons.telling import WORDS
from attnc.codegen.gluon.skeletons.tiles import barriers


@gluon.jit
def attend_tiles(
    descriptors, results, batch, keys, k_place, v_place, scale, sink_logit, cap,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    FAR: gl.constexpr, CAP: gl.constexpr, RINGS: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr,
    SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr, AHEAD: gl.constexpr, PIN: gl.constexpr, DIRECT: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """Shared memory, its barriers and its parties. DIRECT: results go out from registers."""
    NUMBERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    q_desc, k_desc, v_desc = descriptors
    o_desc, o, lse = results
    dtype: gl.constexpr = q_desc.dtype
    PARTIES: gl.constexpr = BLOCK_Q // SHARE
    q_slots = gl.allocate_shared_memory(dtype, [Q_SLOTS * PARTIES, SHARE, 1, BLOCK_D], q_desc.layout)
    k_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_K, 1, BLOCK_D], k_desc.layout)
    v_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_K, 1, BLOCK_E], v_desc.layout)
    o_slots = q_slots
    if not DIRECT:
        o_slots = gl.allocate_shared_memory(dtype, [PARTIES, SHARE, 1, BLOCK_E], o_desc.layout)
    words = gl.allocate_shared_memory(gl.int32, [Q_SLOTS * WORDS, 1], NUMBERS)
    marks = gl.allocate_shared_memory(gl.int32, [AHEAD * (PARTIES + 1), 1], NUMBERS)
    spread = gl.allocate_shared_memory(gl.int32, [AHEAD * (FAR + 1), BLOCK_K], NUMBERS)
    q_full, q_empty = barriers(Q_SLOTS * PARTIES, 1, 1)
    k_full, k_empty = barriers(SLOTS, 1, PARTIES)
    v_full, v_empty = barriers(SLOTS, 1, PARTIES)
    v_raw = barriers(1, 1, 1)[0]
    tile_full = barriers(Q_SLOTS, 1, 1)[0]
    step_full, step_empty = barriers(AHEAD, 1, 1)
    fence_async_shared()
    q_ring = q_slots, q_full, q_empty
    k_ring = k_slots, k_full, k_empty
    v_ring = v_slots, v_full, v_empty
    tile_ring = words, tile_full
    steps_told = marks, spread
    step_ring = marks, spread, step_full, step_empty
    outputs = o_desc, o_slots, o, lse
    kv_heads, rows = batch[3], keys[0]
    if PARTIES == 2:
        gl.warp_specialize([
            (consume, (
                0, tile_ring, steps_told, q_ring, k_ring, v_ring, kv_heads, rows, outputs, scale, sink_logit, cap, FAR, GROUP,
                E, BLOCK_D, BLOCK_E, CAP, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT,
            )),
            (consume, (
                1, tile_ring, steps_told, q_ring, k_ring, v_ring, kv_heads, rows, outputs, scale, sink_logit, cap, FAR, GROUP,
                E, BLOCK_D, BLOCK_E, CAP, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT,
            )),
            (produce, (
                descriptors, tile_ring, step_ring, q_ring, k_ring, v_ring, v_raw, BLOCK_E, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
                AHEAD,
            )),
            (plan, (
                tile_ring, step_ring, q_empty, batch, keys, k_place, v_place,
                ROW, GROUP, D, E, FAR, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD,
            )),
        ], [4, 1, 1], [REGISTERS, 504 - 2 * REGISTERS, 504 - 2 * REGISTERS])  # fmt: skip
    else:
        gl.warp_specialize([
            (consume, (
                0, tile_ring, steps_told, q_ring, k_ring, v_ring, kv_heads, rows, outputs, scale, sink_logit, cap, FAR, GROUP,
                E, BLOCK_D, BLOCK_E, CAP, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT,
            )),
            (consume, (
                1, tile_ring, steps_told, q_ring, k_ring, v_ring, kv_heads, rows, outputs, scale, sink_logit, cap, FAR, GROUP,
                E, BLOCK_D, BLOCK_E, CAP, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT,
            )),
            (consume, (
                2, tile_ring, steps_told, q_ring, k_ring, v_ring, kv_heads, rows, outputs, scale, sink_logit, cap, FAR, GROUP,
                E, BLOCK_D, BLOCK_E, CAP, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT,
            )),
            (produce, (
                descriptors, tile_ring, step_ring, q_ring, k_ring, v_ring, v_raw, BLOCK_E, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
                AHEAD,
            )),
            (plan, (
                tile_ring, step_ring, q_empty, batch, keys, k_place, v_place,
                ROW, GROUP, D, E, FAR, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD,
            )),
        ], [4, 4, 1, 1], [REGISTERS, REGISTERS, 512 - 3 * REGISTERS, 512 - 3 * REGISTERS])  # fmt: skip
