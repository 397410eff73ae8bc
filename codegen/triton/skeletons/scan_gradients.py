"""Gradients of what the tokens of a chunk bring: one program for a chunk, a head and a block of the state's key channels.

A program walks the value channels. From the states before and their gradients after each chunk, from what tokens wrote, U, and
the gradients of outputs, dO (with the delta rule also dR of U's right side, scan_backward), it finds

    dP = dO U^T,  dQ = (dO S^T) since + (dP between) K,  dK = (U G^T) until + (dP between)^T Q
    dA = -dR U^T, dE = -(dR S^T) since + (dA between) K, dK += (dA between)^T E         E: the keys that are erased

The gradient of a token's decay is what flows past it: from what was written before it to what is read from it on. It is summed
as such, not as a difference of larger sums. Where every key channel decays, what is within chunks is left to scan_flows.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import (
    add_product,
    architecture,
    between,
    bits,
    fade_sum,
    output_share,
    read_eraser,
    read_gates,
    read_rows,
    read_turned,
    run,
    since_start,
    until_end,
)

FORM = ("scalar", "add", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
CHANNELS = False  # every key channel decays by itself
DECAYS = True  # tokens or heads have a decay
DELTA = False  # the delta rule
NORMALIZE = False  # outputs are divided by the sum of their weights
BLOCKS = {  # (architecture, bytes of an element): tokens of a chunk, channels of a block of keys and values, warps, stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def store_erased(erased_grad, key, e, erase_grad, block, tokens, row, head, heads, index, left, channel, K: tl.constexpr):
    """The gradient of keys from that of erased keys [C, BLOCK_K]; leaves that of strengths, of which a block has a part."""
    strength = tl.load(e + (row + index) * heads + head, mask=index < left, other=0.0).to(tl.float32)
    to = erase_grad + (block.to(tl.int64) * tokens + row) * heads + head + index * heads
    tl.store(to, tl.sum(key.to(tl.float32) * erased_grad, 1), mask=index < left)
    return erased_grad * strength[:, None]


@triton.jit
def flow(pairs, rows, columns, through, index):
    """What flows past each token [C]: of pairs [C, C] those from a column before it to a row from it on; of rows what they find
    from before the chunk, of columns what is left of them after it; and what passes through the whole chunk.
    """
    later = tl.cumsum(tl.where(index[:, None] > index[None, :], pairs, 0.0), 0, reverse=True)
    past = tl.sum(tl.where(index[:, None] > index[None, :], later, 0.0), 1)
    before = tl.sum(tl.where(index[:, None] > index[None, :], columns[None, :], 0.0), 1)
    return past + before + tl.sum(tl.where(index[:, None] <= index[None, :], rows[None, :], 0.0), 1) + through


@triton.jit
def unrounded(kept, given, kept_at, given_at, mask, is_given):
    """A state, or its gradient, in fp32: as it was given where it was, else as a chunk keeps it."""
    exact = tl.load(given + given_at, mask=mask & is_given, other=0.0)
    return tl.where(is_given, exact, tl.load(kept + kept_at, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def passing(states, states_grad, before, after_grad, sums, sums_grad, slot, place, is_first, is_last, channel,
            K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr):  # fmt: skip
    """What passes through the whole chunk [BLOCK], but for its decay."""
    through = tl.zeros([BLOCK], tl.float32)
    for begin in tl.range(0, V, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        tile = channel[:, None] * V + d[None, :]
        mask = (channel < K)[:, None] & (d < V)[None, :]
        state = unrounded(states, before, slot * (K * V) + tile, place * (K * V) + tile, mask, is_first)
        grad = unrounded(states_grad, after_grad, slot * (K * V) + tile, place * (K * V) + tile, mask, is_last)
        through += tl.sum(state * grad, 1)
    if NORMALIZE:
        total = tl.load(sums + slot * K + channel, mask=channel < K, other=0.0)
        through += total * tl.load(sums_grad + slot * K + channel, mask=channel < K, other=0.0)
    return through


@triton.jit(do_not_specialize=["factor", "tokens", "sequences", "heads", "q_share", "k_share", "v_share"])
def gradients_kernel(
    q, k, v, e, o_grad, norms, deltas, decay, states, sums, states_grad, sums_grad, values_grad, before, after_grad,
    q_grad, k_grad, erase_grad, decay_grad, pairs, strengths, offsets,
    factor, tokens, sequences, heads, q_share, k_share, v_share,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr,
    CHANNELS: tl.constexpr, DECAYS: tl.constexpr, DELTA: tl.constexpr, NORMALIZE: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (K + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    chunks = tl.num_programs(0) // (blocks * heads * sequences)
    chunk = program // (blocks * heads) % chunks
    sequence = program // (blocks * heads * chunks)
    token_begin = tl.load(offsets + sequence)
    left = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32) - chunk * C
    if left <= 0:
        return
    row = token_begin + chunk * C
    slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
    index = tl.arange(0, C)
    here = index < left
    c = block * BLOCK + tl.arange(0, BLOCK)
    v_head = (head // v_share).to(tl.int64) * v_head_stride

    pair_grad = tl.zeros([C, C], tl.float32)
    query_grad = tl.zeros([C, BLOCK], tl.float32)
    key_grad = tl.zeros([BLOCK, C], tl.float32)  # turned
    erased_pair_grad = tl.zeros([C, C], tl.float32)
    erased_grad = tl.zeros([C, BLOCK], tl.float32)
    for begin in tl.range(0, V, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        value = read_rows(v, row, v_token_stride, v_head, index, left, d, V)
        out_grad = read_rows(o_grad, row, heads * V, head * V, index, left, d, V)
        tile = slot * (K * V) + c[:, None] * V + d[None, :]
        inside = (c < K)[:, None] & (d < V)[None, :]
        state = tl.load(states + tile, mask=inside, other=0.0)
        state_grad = tl.load(states_grad + tile, mask=inside, other=0.0)
        turned = tl.trans(state.to(value.dtype))
        upper = state_grad.to(value.dtype)
        pair_grad = tl.dot(out_grad, tl.trans(value), pair_grad, input_precision="ieee")
        query_grad = tl.dot(out_grad, turned, query_grad, input_precision="ieee")
        key_grad = tl.dot(upper, tl.trans(value), key_grad, input_precision="ieee")
        if state_grad.dtype != value.dtype:  # the rest of its digits, for what decays
            rest = (state_grad - upper.to(tl.float32)).to(value.dtype)
            key_grad = tl.dot(rest, tl.trans(value), key_grad, input_precision="ieee")
        if DELTA:
            right = read_rows(values_grad, row, heads * V, head * V, index, left, d, V)
            erased_pair_grad = tl.dot(right, tl.trans(value), erased_pair_grad, input_precision="ieee")
            erased_grad = tl.dot(right, turned, erased_grad, input_precision="ieee")

    gates = read_gates(decay, row, head, heads, index, left, slot, c, K)
    share = output_share(norms, factor, row, head, heads, index, left, NORMALIZE)[:, None]
    lower = (index[:, None] >= index[None, :]) & here[:, None]
    pair_grad = pair_grad * share
    query_grad = query_grad * share
    if NORMALIZE:
        change = tl.load(deltas + (row + index) * heads + head, mask=here, other=0.0)[:, None]
        total = tl.load(sums + slot * K + c, mask=c < K, other=0.0)
        total_grad = tl.load(sums_grad + slot * K + c, mask=c < K, other=0.0)
        pair_grad += change
        query_grad += change * total[None, :]
        key_grad += total_grad[:, None]
    pair_grad = tl.where(lower, pair_grad, 0.0)
    erased_pair_grad = tl.where(index[:, None] > index[None, :], -erased_pair_grad, 0.0)
    place = (sequence * heads + head).to(tl.int64)
    is_first = (chunk == 0) & BEFORE
    is_last = left <= C
    to_rows = (row * heads + head) * K + (index[:, None] * (heads * K) + c[None, :])
    to_turned = (row * heads + head) * K + (index[None, :] * (heads * K) + c[:, None])
    row_mask = here[:, None] & (c < K)[None, :]
    turned_mask = here[None, :] & (c < K)[:, None]
    if CHANNELS:  # gradients of folded rows, and of pairs
        tl.store(q_grad + to_rows, query_grad.to(q_grad.dtype.element_ty), mask=row_mask)
        tl.store(k_grad + to_turned, key_grad.to(k_grad.dtype.element_ty), mask=turned_mask)
        through = passing(
            states, states_grad, before, after_grad, sums, sums_grad, slot, place, is_first, is_last, c, K, V, BLOCK, NORMALIZE
        )
        tl.store(decay_grad + slot * K + c, fade_sum(through, gates), mask=c < K)
        to = (row * heads + head) * C + (index[:, None] * (heads * C) + index[None, :])
        if block == 0:
            tl.store(pairs + to, pair_grad.to(pairs.dtype.element_ty), mask=here[:, None])
        if DELTA:
            tl.store(erase_grad + to_rows, (-erased_grad).to(erase_grad.dtype.element_ty), mask=row_mask)
            if block == 0:
                tl.store(strengths + to, erased_pair_grad.to(strengths.dtype.element_ty), mask=here[:, None])
    else:
        k_head = (head // k_share).to(tl.int64) * k_head_stride
        query = read_rows(q, row, q_token_stride, (head // q_share).to(tl.int64) * q_head_stride, index, left, c, K)
        key = read_rows(k, row, k_token_stride, k_head, index, left, c, K)
        key_turned = read_turned(k, row, k_token_stride, k_head, index, left, c, K)
        alive = between(gates)
        query_grad = query_grad * since_start(gates)
        key_grad = key_grad * tl.trans(tl.zeros_like(here).to(tl.float32)[:, None] + until_end(gates))
        pair_grad = pair_grad * alive
        if DECAYS:
            flows = pair_grad * tl.dot(query, key_turned, input_precision="ieee")
            found = tl.sum(query.to(tl.float32) * query_grad, 1)
            kept = tl.sum(key_turned.to(tl.float32) * key_grad, 0)
        query_grad = add_product(query_grad, pair_grad.to(key.dtype), key)
        tl.store(q_grad + to_rows, query_grad.to(q_grad.dtype.element_ty), mask=row_mask)
        key_grad = add_product(key_grad, tl.trans(query), pair_grad.to(key.dtype))
        if DELTA:
            erased, strength = read_eraser(key, e, row, head, heads, index, left, c, K)
            erased_pair_grad = erased_pair_grad * alive
            erased_grad = -erased_grad * since_start(gates)
            if DECAYS:
                flows += erased_pair_grad * strength * tl.dot(erased, key_turned, input_precision="ieee")
                found += tl.sum(erased.to(tl.float32) * strength * erased_grad, 1)
            erased_grad = add_product(erased_grad, erased_pair_grad.to(key.dtype), key)
            leads = (erased_pair_grad * strength).to(key.dtype)
            key_grad = add_product(key_grad, tl.trans(erased), leads)
            key_grad += tl.trans(
                store_erased(erased_grad, key, e, erase_grad, block, tokens, row, head, heads, index, left, c, K)
            )
        tl.store(k_grad + to_turned, key_grad.to(k_grad.dtype.element_ty), mask=turned_mask)
        if DECAYS:
            through = passing(
                states,
                states_grad,
                before,
                after_grad,
                sums,
                sums_grad,
                slot,
                place,
                is_first,
                is_last,
                c,
                K,
                V,
                BLOCK,
                NORMALIZE,
            )
            past = flow(flows, found, kept, tl.sum(fade_sum(through, gates), 0), index)
            to = decay_grad + (block.to(tl.int64) * tokens + row) * heads + head + index * heads
            tl.store(to, past, mask=here)


def settings(before, chunk, block, warps, stages):
    """The kernel's compile-time arguments."""
    return {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "BLOCK": min(block, max(16, triton.next_power_of_2(max(KEY_WIDTH, VALUE_WIDTH)))),
        "C": chunk,
        "CHANNELS": CHANNELS,
        "DECAYS": DECAYS,
        "DELTA": DELTA,
        "NORMALIZE": NORMALIZE,
        "BEFORE": before,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `gradients` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    return tuple((gradients_kernel, settings(before, *row)) for before in ((False, True) if DECAYS else (False,)))


def gradients(steps, made, norms, deltas, o_grad, before, after_grad, kept, back, *, blocks=None):
    """Gradients of queries, keys, strengths of erasing and decays.

    steps, made, norms, deltas, o_grad, after_grad as scan_backward takes them; before [S, H, K, V] fp32, or None for zeros;
    kept: what `scan` keeps; back: what `go_back` returns.
    Returns by name q, k [T, H, K] (fp32 where a head is repeated), and where there are such gates erase and decay, in parts
    [B, T, H] for blocks of channels, or erase [T, H, K]. Where channels decay, of folded rows q, k, erase [T, H, K], decay
    [N, H, K]: what passes through a chunk, and of pairs, pairs and strengths [T, H, C].
    """
    q, k = steps.q, steps.k
    states, sums, values, *_ = kept
    v = steps.v if values is None else values
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    compiled = settings(DECAYS and before is not None, *chosen)
    parts = triton.cdiv(KEY_WIDTH, compiled["BLOCK"])

    def new(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=q.device)

    def rows(x):
        whole = CHANNELS or x.shape[1] == heads
        return new(tokens, heads, KEY_WIDTH, dtype=q.dtype if whole else torch.float32)

    decay = made["decay"] if CHANNELS or (DECAYS and not DELTA and steps.decay.dim() == 2) else steps.decay
    found = {"q": rows(q), "k": rows(k)}
    if CHANNELS:
        found["decay"] = new(len(states), heads, KEY_WIDTH)
        found["pairs"] = new(tokens, heads, chosen[0], dtype=q.dtype)
    elif DECAYS:
        found["decay"] = new(parts, tokens, heads)
    if DELTA:
        whole = CHANNELS or steps.erase.dim() == 3
        found["erase"] = new(tokens, heads, KEY_WIDTH, dtype=q.dtype if CHANNELS else torch.float32)
        found["erase"] = found["erase"] if whole else new(parts, tokens, heads)
        if CHANNELS:
            found["strengths"] = new(tokens, heads, chosen[0], dtype=q.dtype)
    tensors = (
        q, k, v, steps.erase, o_grad, norms, deltas, decay, states, sums, back[2], back[3], back[6], before, after_grad,
        found["q"], found["k"], found.get("erase"), found.get("decay"), found.get("pairs"), found.get("strengths"),
    )  # fmt: skip
    tensors = (*(q if tensor is None else tensor for tensor in tensors), steps.offsets)
    strides = [stride for tensor in (q, k, v) for stride in tensor.stride()[:2]]
    numbers = (steps.scale, tokens, sequences, heads, *(heads // tensor.shape[1] for tensor in (q, k, v)), *strides)
    programs = parts * heads * sequences * triton.cdiv(steps.max_new, chosen[0])
    key = (gradients_kernel, q.device, tuple(tensor.dtype for tensor in tensors), compiled["BEFORE"], chosen)
    run(gradients_kernel, programs, tensors, numbers, bits(strides), key, lambda: compiled)
    return found
