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
