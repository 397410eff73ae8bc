"""What the kernels of matrix states share: how decays enter a chunk, and how a kernel is launched.

The functions of a decay are holes: here they are those of one decay for every token and head. The emitter puts the functions of
this file into each kernel file, in place of its import.
"""

import torch
import triton
import triton.language as tl

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def read_gates(decay, row, head, heads, index, left, slot, channel, K: tl.constexpr):
    """What is left of a state since the chunk's start, as logarithms to base 2 in two parts, of every token and at the end.

    One part alone would lose what lies between two tokens behind a strong decay: sums of a thousand have few digits for it.
    """
    gate = tl.load(decay + (row + index) * heads + head, mask=index < left, other=0.0).to(tl.float64) * LOG2E
    sums = tl.cumsum(gate, 0)
    end = tl.sum(gate, 0)
    high = sums.to(tl.float32)
    end_high = end.to(tl.float32)
    return high, (sums - high.to(tl.float64)).to(tl.float32), end_high, (end - end_high.to(tl.float64)).to(tl.float32)


@triton.jit
def exp_of(gate):
    """e^gate. The logarithm to base 2 has two parts: rounded to one, it would be most of the error of a single step."""
    gate = tl.where(gate < -1e4, -1e4, gate)
    high = gate * LOG2E
    upper = gate * 4097.0 - (gate * 4097.0 - gate)  # half of the digits, so that products with 1.44287109375 are exact
    low = (upper * 1.44287109375 - high) + (gate - upper) * 1.44287109375 - gate * 0.0001760528610366
    return tl.exp2(high) * (1.0 + low * 0.6931471805599453)


@triton.jit
def since_start(gates):
    """What each token, a row, finds of the state before the chunk."""
    return (tl.exp2(gates[0]) * (1.0 + gates[1] * 0.6931471805599453))[:, None]


@triton.jit
def until_end(gates):
    """What is left after the chunk of what each token, a row, wrote."""
    high, low, end_high, end_low = gates
    return tl.exp2((end_high - high) + (end_low - low))[:, None]


@triton.jit
def between(gates):
    """What token i, a row, finds of what token j, a column, wrote; j <= i, the others are not read."""
    high, low, end_high, end_low = gates
    passed = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.where(passed > 0, 0.0, passed))


@triton.jit
def between_turned(gates):
    """The same with the writing token as row, the finding one as column."""
    high, low, end_high, end_low = gates
    passed = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
    return tl.exp2(tl.where(passed > 0, 0.0, passed))


@triton.jit
def fade(state, gates):
    """A state [K, V] after the chunk's decays."""
    return state * (tl.exp2(gates[2]) * (1.0 + gates[3] * 0.6931471805599453))


@triton.jit
def fade_sum(sums, gates):
    """A sum of keys [K] after the chunk's decays."""
    return sums * (tl.exp2(gates[2]) * (1.0 + gates[3] * 0.6931471805599453))


@triton.jit
def read_eraser(key, e, row, head, heads, index, left, channel, K: tl.constexpr):
    """The keys that are erased [C, K], and their strengths: here one a token."""
    return key, tl.load(e + (row + index) * heads + head, mask=index < left, other=0.0).to(tl.float32)[:, None]


@triton.jit
def read_write(write, row, head, heads, index, left, channel, V: tl.constexpr):
    """The strengths of what is written, of each token and channel: here one a token."""
    return tl.load(write + (row + index) * heads + head, mask=index < left, other=0.0).to(tl.float32)[:, None]


@triton.jit
def read_rows(x, row, token_stride, offset, index, left, channel, WIDTH: tl.constexpr):
    """The rows of a chunk [C, WIDTH], padded with 0."""
    here = x + (row * token_stride + offset)
    mask = (index < left)[:, None] & (channel < WIDTH)[None, :]
    return tl.load(here + (index[:, None] * token_stride + channel[None, :]), mask=mask, other=0.0)


@triton.jit
def read_turned(x, row, token_stride, offset, index, left, channel, WIDTH: tl.constexpr):
    """The same turned [WIDTH, C]: a token is a column."""
    here = x + (row * token_stride + offset)
    mask = (channel < WIDTH)[:, None] & (index < left)[None, :]
    return tl.load(here + (index[None, :] * token_stride + channel[:, None]), mask=mask, other=0.0)


@triton.jit
def add_product(total, a, b):
    """total + a b. Products of fp32 numbers are summed before they are added, as a large total rounds each of them: Triton
    makes one sum of both where they are added, not where they are subtracted. Tensor cores round once for 16 products.
    """
    if a.dtype == tl.float32:
        return total - tl.dot(-a, b, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def output_share(norms, factor, row, head, heads, index, left, NORMALIZE: tl.constexpr):
    """What outputs are multiplied by [C]: one factor, or one over the sum of their weights."""
    share = tl.zeros_like(index).to(tl.float32) + factor
    if NORMALIZE:
        norm = tl.load(norms + (row + index) * heads + head, mask=index < left, other=0.0)
        share = tl.where(norm != 0.0, 1.0 / tl.where(norm != 0.0, norm, 1.0), 0.0)
    return share


@triton.jit
def part_fades(decay, row, head, heads, index, left, channel, K: tl.constexpr):
    """Of 16 tokens: what is left of a state since their start, until their end, and after all, by products of decays."""
    own = exp_of(read_rows(decay, row, heads * K, head * K, index, left, channel, K))
    count = tl.minimum(left, index.shape[0])
    later = exp_of(read_rows(decay, row + 1, heads * K, head * K, index, count - 1, channel, K))
    until = tl.cumprod(later, 0, reverse=True)
    return tl.cumprod(own, 0), until, tl.sum(tl.where(index[:, None] == 0, own * until, 0.0), 0)


@triton.jit(do_not_specialize=["segments", "heads"])
def carry_kernel(
    ends, sum_ends, rest, before, sum_before, starts, sum_starts, segments, heads, place_stride, row_stride,
    K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    DELTA: tl.constexpr, NORMALIZE: tl.constexpr, BEFORE: tl.constexpr, BACK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """From what segments end with, beginning with 0, the states before all of them, or going back their gradients behind."""
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    sequence = program // (blocks * heads)
    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    tile = c[:, None] * V + d[None, :]
    inside = (c < K)[:, None] & (d < V)[None, :]
    place = (sequence * heads + head).to(tl.int64)
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    if BEFORE:
        state = tl.load(before + place * (K * V) + tile, mask=inside, other=0.0)
        if NORMALIZE:
            total = tl.load(sum_before + place * K + c, mask=c < K, other=0.0)
    for step in tl.range(0, segments):
        segment = segments - 1 - step if BACK else step
        place = ((sequence * segments + segment) * heads + head).to(tl.int64)
        tl.store(starts + place * (K * V) + tile, state, mask=inside)
        end = tl.load(ends + place * (K * COLUMNS) + c[:, None] * COLUMNS + d[None, :], mask=inside, other=0.0)
        here = rest + place * place_stride
        if DELTA:
            tl.debug_barrier()  # rows of the state, a few at a time, as all threads have just stored them
            state = end
            for begin in tl.range(0, K, PART):
                part = begin + tl.arange(0, PART)
                way = part[None, :] * row_stride + c[:, None] if BACK else c[:, None] * row_stride + part[None, :]
                moved = tl.load(here + way, mask=(c < K)[:, None] & (part < K)[None, :], other=0.0)
                mask = (part < K)[:, None] & (d < V)[None, :]
                rows = tl.load(starts + place * (K * V) + part[:, None] * V + d[None, :], mask=mask, other=0.0)
                state = tl.dot(moved, rows, state, input_precision="ieee")
        else:
            left = tl.load(here + c, mask=c < K, other=0.0)
            state = left[:, None] * state + end
            if NORMALIZE:
                if block == 0:
                    tl.store(sum_starts + place * K + c, total, mask=c < K)
                total = left * total + tl.load(sum_ends + place * K + c, mask=c < K, other=0.0)


def carry_settings(key_width, value_width, delta, normalize, before, back):
    """The compile-time arguments of `carry_kernel`."""
    return {
        "K": key_width,
        "V": value_width,
        "COLUMNS": value_width + (key_width if delta and not back else 0),
        "BLOCK_K": max(16, triton.next_power_of_2(key_width)),
        "BLOCK_V": 16,
        "DELTA": delta,
        "NORMALIZE": normalize,
        "BEFORE": before,
        "BACK": back,
        "PART": 16,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def carry(ends, sum_ends, rest, before, sum_before, sequences, value_width, delta, back):
    """The states before all segments [S n, H, K, V] and sums or None; going back, their gradients behind each.

    ends [S n, H, K, V and more], sum_ends [S n, H, K] or None: what the n segments of S sequences end with, beginning with 0;
    rest [S n, H, K] or, with the delta rule, [S n, H, K, K]: what they leave of a state before;
    before [S, H, K, V] and sum_before [S, H, K], or None for zeros: of sequences.
    """
    number, heads, key_width = ends.shape[:3]
    normalize = sum_ends is not None
    compiled = carry_settings(key_width, value_width, delta, normalize, before is not None, back)
    states = ends.new_empty(number, heads, key_width, value_width)
    sums = torch.empty_like(sum_ends) if normalize else None
    tensors = (ends, sum_ends, rest, before, sum_before, states, sums)
    tensors = tuple(ends if tensor is None else tensor for tensor in tensors)
    numbers = (number // sequences, heads, rest.stride(1), rest.stride(2) if delta else rest.stride(1))
    programs = triton.cdiv(value_width, compiled["BLOCK_V"]) * heads * sequences
    key = (carry_kernel, ends.device, before is not None, back)
    run(carry_kernel, programs, tensors, numbers, bits(numbers[2:]), key, lambda: compiled)
    return states, sums


def segments_of(device, programs, chunks, sweeps):
    """How many segments a sequence of so many chunks is split into, and chunks of one: as many as fill the GPU.

    programs: those of a launch without segments; sweeps: how many of its work what segments take together. Segments of less
    than 16 chunks would be found in less time than what is around them takes.
    """
    room = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "any": 0}[architecture(device)]
    span = max(16, triton.cdiv(chunks, max(1, room // max(1, programs))))
    segments = triton.cdiv(chunks, span)
    return (segments, span) if segments > sweeps else (1, chunks)


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


def run(kernel, programs, tensors, numbers, strides, key, constants):
    """kernel[(programs,)](*tensors, *numbers, **constants()), without Triton's long look at every argument.

    It compiles for types, and for which numbers are multiples of 16, or 1. Where all pointers and `strides` (the bits of all
    that are compiled for, together) are multiples of 16, `key` says the rest, and what was compiled for it runs at once.
    """
    if programs == 0:
        return
    pointers = [tensor.data_ptr() for tensor in tensors]
    bits = strides
    for pointer in pointers:
        bits |= pointer
    plain = bits % 16 == 0 and strides < 2**31
    if plain and key in READY:
        compiled, rest = READY[key]
        compiled[programs, 1, 1](*pointers, *numbers, *rest)
        return
    settings = constants()
    compiled = kernel[(programs,)](*tensors, *numbers, **settings)
    if plain and compiled is not None:  # Triton's interpreter compiles nothing
        READY[key] = compiled, [settings[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]


def bits(strides):
    """The bits of all of them together."""
    together = 0
    for stride in strides:
        together |= stride
    return together
