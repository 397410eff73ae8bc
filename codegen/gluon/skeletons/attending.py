"""Who works on a tile of queries: one warp that copies, and two or three groups of four warps that attend 64 queries each."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from attnc.codegen.gluon.skeletons.consuming import consume
from attnc.codegen.gluon.skeletons.producing import produce
from attnc.codegen.gluon.skeletons.seeing import SHARE
from attnc.codegen.gluon.skeletons.tiles import barriers


@gluon.jit
def attend_tiles(
    descriptors, results, batch, keys, k_place, v_place, scale, sink_logit, cap,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    FAR: gl.constexpr, CAP: gl.constexpr, RINGS: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr,
    SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr, PIN: gl.constexpr, EARLY: gl.constexpr, DIRECT: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """Shared memory, its barriers and its parties. DIRECT: results go out from registers."""
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
    q_full, q_empty = barriers(Q_SLOTS * PARTIES, 1, 1)
    k_full, k_empty = barriers(SLOTS, 1, PARTIES)
    v_full, v_empty = barriers(SLOTS, 1, PARTIES)
    v_raw, none = barriers(1, 1, 1)
    fence_async_shared()
    q_ring = q_slots, q_full, q_empty
    k_ring = k_slots, k_full, k_empty
    v_ring = v_slots, v_full, v_empty
    outputs = o_desc, o_slots, o, lse
    if PARTIES == 2:
        gl.warp_specialize([
            (consume, (
                0, q_ring, k_ring, v_ring, batch, keys, outputs, scale, sink_logit, cap, ROW, FAR, GROUP, E, BLOCK_D,
                BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, EARLY, DIRECT,
            )),
            (consume, (
                1, q_ring, k_ring, v_ring, batch, keys, outputs, scale, sink_logit, cap, ROW, FAR, GROUP, E, BLOCK_D,
                BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, EARLY, DIRECT,
            )),
            (produce, (
                descriptors, q_ring, k_ring, v_ring, v_raw, batch, keys, k_place, v_place,
                ROW, GROUP, D, E, BLOCK_E, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
            )),
        ], [4, 1], [REGISTERS, 504 - 2 * REGISTERS])  # fmt: skip
    else:
        gl.warp_specialize([
            (consume, (
                0, q_ring, k_ring, v_ring, batch, keys, outputs, scale, sink_logit, cap, ROW, FAR, GROUP, E, BLOCK_D,
                BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, EARLY, DIRECT,
            )),
            (consume, (
                1, q_ring, k_ring, v_ring, batch, keys, outputs, scale, sink_logit, cap, ROW, FAR, GROUP, E, BLOCK_D,
                BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, EARLY, DIRECT,
            )),
            (consume, (
                2, q_ring, k_ring, v_ring, batch, keys, outputs, scale, sink_logit, cap, ROW, FAR, GROUP, E, BLOCK_D,
                BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, EARLY, DIRECT,
            )),
            (produce, (
                descriptors, q_ring, k_ring, v_ring, v_raw, batch, keys, k_place, v_place,
                ROW, GROUP, D, E, BLOCK_E, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
            )),
        ], [4, 4, 1], [REGISTERS, REGISTERS, 512 - 3 * REGISTERS])  # fmt: skip
