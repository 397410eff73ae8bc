"""States of single channels: h <- exp(step rates) h + write u, y = sum of weights read h, forward, backward and step by step.

One program walks the tokens of a sequence for a block of channels, a tile of tokens at a time. In a tile an associative scan
finds all states at once, [tokens, channels, numbers of a state], which stay in registers: what lies in memory beside inputs and
outputs is the state at the beginning of every tile, for the backward pass alone. That walks the tiles in reverse, finds each
one's states again, and scans their gradients from the last token to the first.

Tokens lie packed: u, step, y [T, C]; write, read [T, M]; rates, weights [C, M]; states [S, C, M]. All arithmetic is in fp32.
"""

import torch
import triton
import triton.language as tl

STATE = 16  # numbers of a channel's state, M
PARTS = (True, True, True, False)  # whether there are step, write, read and weights; else they are 1
BLOCKS = {  # architecture: tokens and channels of a tile, warps
    "any": (16, 16, 4),
}

KNOWN = {}  # device -> its row of BLOCKS


@triton.jit
def join(decay, added, later_decay, later_added):
    """Two stretches of tokens as one."""
    return decay * later_decay, later_added + later_decay * added


@triton.jit
def decays(step, rates, place, live, stride, c, STEP: tl.constexpr):
    """[tokens, channels, M], what each token leaves of a state; 1 where there is no token."""
    if STEP:
        of_tokens = tl.load(step + place[:, None] * stride + c[None, :], mask=live, other=0.0).to(tl.float32)
        left = tl.exp(of_tokens[:, :, None] * rates[None])
    else:
        left = tl.where(live[:, :, None], tl.exp(rates)[None], 1.0)
    return left


@triton.jit
def numbers(x, place, live, stride, m, M: tl.constexpr, THERE: tl.constexpr):
    """[tokens, 1, M], what write or read holds of each token; 1 where there is no such thing."""
    if THERE:
        there = live[:, None] & (m < M)[None, :]
        found = tl.load(x + place[:, None] * stride + m[None, :], mask=there, other=0.0).to(tl.float32)[:, None, :]
    else:
        found = tl.where(m < M, 1.0, 0.0)[None, None, :]
    return found


@triton.jit
def values(x, place, live, stride, c):
    """[tokens, channels, 1], what u or y's gradient holds of each token."""
    return tl.load(x + place[:, None] * stride + c[None, :], mask=live, other=0.0).to(tl.float32)[:, :, None]


@triton.jit
def of_channels(x, c, m, own, M: tl.constexpr, THERE: tl.constexpr):
    """[channels, M]; 1 where there is no such thing."""
    return tl.load(x + c[:, None] * M + m[None, :], mask=own, other=0.0) if THERE else tl.where(own, 1.0, 0.0)


@triton.jit
def forward_kernel(
    u, step, rates, write, read, weights, before, y, after, starts, offsets,
    channels, u_stride, step_stride, write_stride, read_stride,
    M: tl.constexpr, STEP: tl.constexpr, WRITE: tl.constexpr, READ: tl.constexpr, WEIGHTS: tl.constexpr,
    BEFORE: tl.constexpr, KEEP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """y, the states after the call, and (KEEP) those at the beginnings of tiles."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    sequence = (program // blocks).to(tl.int64)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    own = (c < channels)[:, None] & (m < M)[None, :]
    begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    state = (sequence * channels + c[:, None]) * M + m[None, :]
    rate = of_channels(rates, c, m, own, M, True)
    weigh = of_channels(weights, c, m, own, M, WEIGHTS)
    h = tl.zeros([BLOCK_C, BLOCK_M], dtype=tl.float32)
    if BEFORE:
        h = tl.load(before + state, mask=own, other=0.0)
    row = tl.arange(0, BLOCK_T)
    first = begin // BLOCK_T + sequence
    for tile in range(tl.cdiv(count, BLOCK_T)):
        place = begin + tile * BLOCK_T + row
        there = tile * BLOCK_T + row < count
        live = there[:, None] & (c < channels)[None, :]
        if KEEP:
            tl.store(starts + ((first + tile) * channels + c[:, None]) * M + m[None, :], h, mask=own)
        decay = decays(step, rate, place, live, step_stride, c, STEP)
        added = values(u, place, live, u_stride, c) * numbers(write, place, there, write_stride, m, M, WRITE)
        if BLOCK_T == 1:
            states = decay * h[None] + added
        else:
            added += tl.where((row == 0)[:, None, None], decay * h[None], 0.0)
            _, states = tl.associative_scan((decay, added), 0, join)
        seen = states * weigh[None] * numbers(read, place, there, read_stride, m, M, READ)
        tl.store(y + place[:, None] * channels + c[None, :], tl.sum(seen, axis=2).to(y.dtype.element_ty), mask=live)
        h = tl.sum(tl.where((row == BLOCK_T - 1)[:, None, None], states, 0.0), axis=0)
    tl.store(after + state, h, mask=own)


@triton.jit
def backward_kernel(
    u, step, rates, write, read, weights, starts, y_grad, after_grad, offsets,
    u_grad, step_grad, rates_grad, write_grad, read_grad, weights_grad, before_grad,
    tokens, channels, u_stride, step_stride, write_stride, read_stride, y_grad_stride,
    M: tl.constexpr, STEP: tl.constexpr, WRITE: tl.constexpr, READ: tl.constexpr, WEIGHTS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradients of all that the forward pass reads; those that channels share are left as sums over a block of channels."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    sequence = (program // blocks).to(tl.int64)
    block = program % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    own = (c < channels)[:, None] & (m < M)[None, :]
    begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    state = (sequence * channels + c[:, None]) * M + m[None, :]
    rate = of_channels(rates, c, m, own, M, True)
    weigh = of_channels(weights, c, m, own, M, WEIGHTS)
    carry = tl.load(after_grad + state, mask=own, other=0.0)  # of the state that a tile leaves, from later tokens
    of_rates = tl.zeros([BLOCK_C, BLOCK_M], dtype=tl.float32)
    of_weights = tl.zeros([BLOCK_C, BLOCK_M], dtype=tl.float32)
    row = tl.arange(0, BLOCK_T)
    first = begin // BLOCK_T + sequence
    tiles = tl.cdiv(count, BLOCK_T)
    for back in range(tiles):
        tile = tiles - 1 - back
        place = begin + tile * BLOCK_T + row
        there = tile * BLOCK_T + row < count
        inside = (c < channels)[None, :]
        live = there[:, None] & inside
        held = tl.load(starts + ((first + tile) * channels + c[:, None]) * M + m[None, :], mask=own, other=0.0)
        # the states before each token: the same scan of the tokens one earlier, of which the first has none
        earlier = there & (row > 0)
        last_decay = decays(step, rate, place - 1, earlier[:, None] & inside, step_stride, c, STEP)
        last_added = values(u, place - 1, earlier[:, None] & inside, u_stride, c)
        last_added *= numbers(write, place - 1, earlier, write_stride, m, M, WRITE)
        last_added = tl.where((row == 0)[:, None, None], held[None], last_added)
        _, last = tl.associative_scan((last_decay, last_added), 0, join)
        left = decays(step, rate, place, live, step_stride, c, STEP) * last
        # gradients of the states, from the last token to the first
        out_grad = values(y_grad, place, live, y_grad_stride, c)
        reading = numbers(read, place, there, read_stride, m, M, READ)
        later = (tile * BLOCK_T + row + 1 < count) & (row + 1 < BLOCK_T)
        next_decay = decays(step, rate, place + 1, later[:, None] & inside, step_stride, c, STEP)
        read_grads = out_grad * reading * weigh[None] + tl.where((row == BLOCK_T - 1)[:, None, None], carry[None], 0.0)
        _, grad = tl.associative_scan((next_decay, read_grads), 0, join, reverse=True)
        value = values(u, place, live, u_stride, c)
        writing = numbers(write, place, there, write_stride, m, M, WRITE)
        where = place[:, None] * channels + c[None, :]
        tl.store(u_grad + where, tl.sum(grad * writing, axis=2).to(u_grad.dtype.element_ty), mask=live)
        shared = (block * tokens + place[:, None]) * M + m[None, :]
        used = there[:, None] & (m < M)[None, :]
        if WRITE:
            tl.store(write_grad + shared, tl.sum(grad * value, axis=1), mask=used)
        states = left + value * writing
        if READ:
            tl.store(read_grad + shared, tl.sum(out_grad * weigh[None] * states, axis=1), mask=used)
        if WEIGHTS:
            of_weights += tl.sum(out_grad * reading * states, axis=0)
        change = grad * left  # of the exponents
        if STEP:
            tl.store(step_grad + where, tl.sum(change * rate[None], axis=2).to(step_grad.dtype.element_ty), mask=live)
            of_rates += tl.sum(change * values(step, place, live, step_stride, c), axis=0)
        else:
            of_rates += tl.sum(tl.where(live[:, :, None], change, 0.0), axis=0)
        before_tile = grad * decays(step, rate, place, live, step_stride, c, STEP)
        carry = tl.sum(tl.where((row == 0)[:, None, None], before_tile, 0.0), axis=0)
    tl.store(before_grad + state, carry, mask=own)
    tl.store(rates_grad + state, of_rates, mask=own)
    if WEIGHTS:
        tl.store(weights_grad + state, of_weights, mask=own)


def architecture(device):
    """The row of BLOCKS that serves a device."""
    if device not in KNOWN:
        if device.type != "cuda":
            KNOWN[device] = "any"
        elif torch.version.hip:
            KNOWN[device] = "gfx942"
        else:
            KNOWN[device] = {8: "sm_80", 9: "sm_90"}.get(torch.cuda.get_device_capability(device)[0], "sm_100")
    return KNOWN[device]


def settings(block_t, block_c, warps):
    """The compile-time arguments of both kernels."""
    return {
        "M": STATE,
        **dict(zip(("STEP", "WRITE", "READ", "WEIGHTS"), PARTS, strict=True)),
        "BLOCK_T": block_t,
        "BLOCK_C": block_c,
        "BLOCK_M": triton.next_power_of_2(STATE),
        "num_warps": warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that may be launched, with its compile-time arguments."""
    whole = settings(*BLOCKS[architecture])
    few = settings(1, *BLOCKS[architecture][1:])
    forward = [(forward_kernel, {**whole, "BEFORE": True, "KEEP": keep}) for keep in (False, True)]
    return (*forward, (forward_kernel, {**few, "BEFORE": True, "KEEP": False}), (backward_kernel, whole))


def dense(x):
    """x with a dense last axis, which kernels read."""
    return x if x.stride(-1) == 1 else x.contiguous()


def given(u, step, rates, write, read, weights):
    """The tensors that kernels read, absent ones stood for by u, and the tokens' strides."""
    parts = [dense(u), *(dense(u if x is None else x) for x in (step, write, read))]
    tensors = (parts[0], parts[1], rates.contiguous(), parts[2], parts[3], u if weights is None else weights.contiguous())
    return tensors, tuple(part.stride(0) for part in parts)


def scan(u, step, rates, write, read, weights, before, offsets, max_new, keep, *, blocks=None):
    """(y [T, C] in u's dtype, states after [S, C, M] fp32, states at the beginnings of tiles or an empty tensor).

    u, step [T, C]; write, read [T, M]; rates, weights [C, M] fp32; before [S, C, M] fp32; all but u and rates may be None, as
    PARTS says. offsets [S + 1] int64; max_new: the most tokens of a sequence; keep: whether a backward pass follows.
    blocks = (tokens, channels, warps) instead of the table's.
    """
    assert (step is not None, write is not None, read is not None, weights is not None) == PARTS
    tokens, channels = u.shape
    sequences = offsets.shape[0] - 1
    assert rates.shape == (channels, STATE)
    block_t, block_c, warps = blocks or BLOCKS[architecture(u.device)]
    if max_new == 1 and not keep:
        block_t = 1
    y = torch.empty(tokens, channels, dtype=u.dtype, device=u.device)
    after = torch.empty(sequences, channels, STATE, dtype=torch.float32, device=u.device)
    tiles = tokens // block_t + sequences if keep else 0
    starts = torch.empty(tiles, channels, STATE, dtype=torch.float32, device=u.device)
    tensors, strides = given(u, step, rates, write, read, weights)
    programs = sequences * triton.cdiv(channels, block_c)
    if programs:
        forward_kernel[(programs,)](
            *tensors, after if before is None else before.contiguous(), y, after, starts, offsets, channels, *strides,
            BEFORE=before is not None, KEEP=keep, **settings(block_t, block_c, warps),
        )  # fmt: skip
    return y, after, starts


def scan_backward(u, step, rates, write, read, weights, starts, offsets, y_grad, after_grad, *, blocks=None):
    """Gradients of u, step, rates, write, read, weights and the states before, of a call of `scan`.

    It takes that call's arguments and `starts`; y_grad [T, C]; after_grad [S, C, M] fp32. What PARTS leaves out has an empty
    gradient.
    """
    tokens, channels = u.shape
    sequences = offsets.shape[0] - 1
    block_t, block_c, warps = blocks or BLOCKS[architecture(u.device)]
    rows = triton.cdiv(channels, block_c)
    has = dict(zip(("step", "write", "read", "weights"), PARTS, strict=True))

    def room(there, *shape, dtype=torch.float32):
        return torch.empty(shape if there else (0,), dtype=dtype, device=u.device)

    u_grad = room(True, tokens, channels, dtype=u.dtype)
    step_grad = room(has["step"], tokens, channels, dtype=step.dtype if has["step"] else torch.float32)
    write_grad, read_grad = (room(has[name], rows, tokens, STATE) for name in ("write", "read"))
    rates_grad, before_grad = (room(True, sequences, channels, STATE) for _ in range(2))
    weights_grad = room(has["weights"], sequences, channels, STATE)
    tensors, strides = given(u, step, rates, write, read, weights)
    y_grad = dense(y_grad)
    if sequences * rows:
        backward_kernel[(sequences * rows,)](
            *tensors, starts, y_grad, after_grad.contiguous(), offsets,
            u_grad, step_grad, rates_grad, write_grad, read_grad, weights_grad, before_grad,
            tokens, channels, *strides, y_grad.stride(0), **settings(block_t, block_c, warps),
        )  # fmt: skip
    sums = [x.sum(0) if x.dim() == 3 else x for x in (rates_grad, write_grad, read_grad, weights_grad)]
    return u_grad, step_grad, *sums, before_grad
