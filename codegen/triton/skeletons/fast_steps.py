"""What kernels of single steps of fast weights share: tokens of an unfinished chunk, and how much each of them adds.

A sequence's unfinished chunk is what a cache holds of its `waiting` tokens, then the new one: `waiting` + 1 tokens. Amounts
are as in runtime/fast_sweep.py, token by token from the last one: r what is left of a write, p what is left of a push, c what
both make of it:

    r_j = r_(j+1) (1 - decay_(j+1));  p_j = p_(j+1) momentum_(j+1);  c_j = r_j + momentum_(j+1) c_(j+1)
"""

import triton
import triton.language as tl


@triton.jit
def read_waiting(held, new, index, waiting, channel, row_stride, WIDTH: tl.constexpr):
    """Rows of an unfinished chunk [TILE, WIDTH], zeros behind its last."""
    mask = (index < waiting)[:, None] & (channel < WIDTH)[None, :]
    old = tl.load(held + index[:, None] * row_stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    own = tl.load(new + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
    return tl.where((index == waiting)[:, None], own[None, :], old)


@triton.jit
def read_known(
    state, start, fresh, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr
):
    """Part of a map as a sequence knows it; a `fresh` one knows what all begin with."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    place = rows[:, None] * ROW + columns[None, :] * COLUMN
    first = tl.load(start + place, mask=mask & fresh, other=0.0).to(tl.float32)
    return tl.where(fresh, first, tl.load(state + place, mask=mask & (fresh == 0), other=0.0))


@triton.jit
def read_rate(x, held, index, waiting, place, head, heads, FORM: tl.constexpr, NONE: tl.constexpr):
    """A rate of an unfinished chunk's tokens, NONE behind the last. FORM: `token`, `head` (one number) or `none`."""
    if FORM == "token":
        old = tl.load(held + index * heads + head, mask=index < waiting, other=NONE).to(tl.float32)
        found = tl.where(index == waiting, tl.load(x + place).to(tl.float32), old)
    elif FORM == "head":
        found = tl.where(index <= waiting, tl.load(x + head).to(tl.float32), NONE)
    else:
        found = tl.zeros_like(index).to(tl.float32) + NONE
    return found


@triton.jit
def together(later, later_sum, own, own_sum):
    """x -> later x + later_sum, then own of that."""
    return own * later, own_sum + own * later_sum


@triton.jit
def first_of(x, lane):
    """The first number of a tile."""
    return tl.sum(tl.where(lane == 0, x, 0.0), 0)


@triton.jit
def leave_amounts(
    lr, momentum, decay, gates, writes, pushes, waiting, place, head, heads, size,
    TILE: tl.constexpr, LR: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """Leaves what each token adds to weights and momentum; gives what is left of the weights, what momentum adds to them,
    and what is left of it. In float64: every product of a chunk would leave its rounding in all weights.
    """
    room = (size - 1) * heads
    gate_of_momentum = gates
    gate_of_decay = gates
    if LR == "token":
        gate_of_momentum += room
        gate_of_decay += room
    if MOMENTUM == "token":
        gate_of_decay += room
    lane = tl.arange(0, TILE)
    kept = tl.full([], 1.0, tl.float64)
    late = tl.full([], 1.0, tl.float64)
    carried = tl.full([], 0.0, tl.float64)
    speed = tl.full([], 0.0, tl.float64)
    tiles = waiting // TILE + 1
    for step in range(tiles):
        index = (tiles - 1 - step) * TILE + lane
        there = index <= waiting
        amount = tl.where(there, read_rate(lr, gates, index, waiting, place, head, heads, LR, 1.0), 0.0)
        stays = 1.0 - read_rate(decay, gate_of_decay, index, waiting, place, head, heads, DECAY, 0.0).to(tl.float64)
        stays_next = 1.0 - read_rate(decay, gate_of_decay, index + 1, waiting, place, head, heads, DECAY, 0.0).to(tl.float64)
        reach = kept * tl.cumprod(tl.where(lane == TILE - 1, 1.0, stays_next), 0, reverse=True)
        kept = first_of(reach * stays, lane)
        if MOMENTUM != "none":
            own = read_rate(momentum, gate_of_momentum, index, waiting, place, head, heads, MOMENTUM, 1.0).to(tl.float64)
            following = read_rate(momentum, gate_of_momentum, index + 1, waiting, place, head, heads, MOMENTUM, 1.0).to(
                tl.float64
            )
            passed, sums = tl.associative_scan((following, tl.where(there, reach, 0.0)), 0, together, reverse=True)
            reach = sums + passed * carried
            pushed = late * tl.cumprod(tl.where(lane == TILE - 1, 1.0, following), 0, reverse=True)
            tl.store(pushes + index, (amount * pushed).to(tl.float32), mask=there)
            carried = first_of(reach, lane)
            late = first_of(pushed * own, lane)
            speed = first_of(reach * own, lane)
        tl.store(writes + index, (amount * reach).to(tl.float32), mask=there)
    return kept.to(tl.float32), speed.to(tl.float32), late.to(tl.float32)


@triton.jit
def row_norms(state, start, fresh, V: tl.constexpr, UNITS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_U: tl.constexpr):
    """The norms of the rows of a map [V, UNITS] out of units."""
    d = tl.arange(0, BLOCK_V)
    total = tl.zeros([BLOCK_V], tl.float32)
    for begin in range(0, UNITS, BLOCK_U):
        part = read_known(state, start, fresh, d, begin + tl.arange(0, BLOCK_U), V, UNITS, UNITS, 1)
        total += tl.sum(part * part, 1)
    return tl.sqrt_rn(total)


@triton.jit
def keep_token(
    k, v, lr, momentum, decay, held_k, held_v, gates, waiting, token, head, heads, size, k_share, v_share, k_stride, v_stride,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    LR: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
):  # fmt: skip
    """A token of an unfinished chunk is held: key and value by the first of the heads that share them, its gates by each."""
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    key = tl.load(k + c, mask=c < K, other=0.0)
    value = tl.load(v + d, mask=d < V, other=0.0)
    tl.store(held_k + waiting * k_stride + c, key.to(held_k.dtype.element_ty), mask=(c < K) & (head % k_share == 0))
    tl.store(held_v + waiting * v_stride + d, value.to(held_v.dtype.element_ty), mask=(d < V) & (head % v_share == 0))
    here = gates + waiting * heads + head
    if LR == "token":
        tl.store(here, tl.load(lr + token * heads + head))
        here += (size - 1) * heads
    if MOMENTUM == "token":
        tl.store(here, tl.load(momentum + token * heads + head))
        here += (size - 1) * heads
    if DECAY == "token":
        tl.store(here, tl.load(decay + token * heads + head))


@triton.jit
def leave_answer(
    o, raw, q, weight, bias, token, head, heads,
    V: tl.constexpr, BLOCK_V: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What a net returns of a query, from what its maps make of it, `raw` [V]."""
    d = tl.arange(0, BLOCK_V)
    inside = d < V
    if NORM:
        less = tl.where(inside, raw - tl.sum(raw, 0) / V, 0.0)
        of_weight = tl.load(weight + head * V + d, mask=inside, other=0.0)
        of_bias = tl.load(bias + head * V + d, mask=inside, other=0.0)
        raw = less * tl.rsqrt(tl.sum(less * less, 0) / V + 1e-6) * of_weight + of_bias
    if RESIDUAL:
        raw += tl.load(q + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(o + (token * heads + head) * V + d, raw.to(o.dtype.element_ty), mask=inside)
