"""What the kernels of fast weights share: products, the error of a net and its derivative, GELU, and how a kernel is launched.

The emitter puts the functions of this file into each kernel file, in place of its import.
"""

import torch
import triton
import triton.language as tl

KNOWN = {}  # device -> its row of BLOCKS


@triton.jit
def nearest(x):
    """fp32 numbers of 11 significant bits, which TF32 holds: tensor cores leave out the others, which makes all products small.

    By bits: where products and sums of numbers are fused, x * 8193 - (x * 8193 - x) is x. A NaN stays one.
    """
    rounded = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b in fp32; `bf16` and `tf32`: of operands rounded to it."""
    if PRECISION == "bf16":
        found = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "tf32":
        found = tl.dot(nearest(a), nearest(b), input_precision=PRECISION)
    else:
        found = tl.dot(a, b, input_precision=PRECISION)
    return found


@triton.jit
def read_rows(x, index, size, channel, WIDTH: tl.constexpr):
    """Rows of a chunk of `size` tokens [TILE, WIDTH], padded with 0."""
    mask = (index < size)[:, None] & (channel < WIDTH)[None, :]
    return tl.load(x + index[:, None] * WIDTH + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def read_turned(x, index, size, channel, WIDTH: tl.constexpr):
    """The same turned [WIDTH, TILE]: a token is a column."""
    mask = (channel < WIDTH)[:, None] & (index < size)[None, :]
    return tl.load(x + index[None, :] * WIDTH + channel[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def read_map(x, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr):
    """Part of a map, an element of it for each of `rows` and `columns`, which lie ROW and COLUMN apart."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(x + rows[:, None] * ROW + columns[None, :] * COLUMN, mask=mask, other=0.0)


@triton.jit
def write_map(
    x, rows, columns, value, is_wanted,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr,
):  # fmt: skip
    """The same written, where it `is_wanted`."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :] & is_wanted
    tl.store(x + rows[:, None] * ROW + columns[None, :] * COLUMN, value, mask=mask)


@triton.jit
def read_norm(weight, bias, head, channel, V: tl.constexpr, NORM: tl.constexpr):
    """A head's weight and bias of the layer norm, as rows."""
    if NORM:
        of_weight = tl.load(weight + head * V + channel, mask=channel < V, other=0.0)
        of_bias = tl.load(bias + head * V + channel, mask=channel < V, other=0.0)
    else:
        of_weight = tl.zeros_like(channel).to(tl.float32)
        of_bias = of_weight
    return of_weight[None, :], of_bias[None, :]


@triton.jit
def error(raw, x, value, weight, bias, inside, V: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr):
    """The gradient of |y - value|^2 by what the net's maps make of x, `raw`; y is that with norm and residual."""
    goal = value
    if RESIDUAL:
        goal = value - x
    if NORM:
        less = tl.where(inside, raw - tl.sum(raw, 1)[:, None] / V, 0.0)
        rstd = tl.rsqrt(tl.sum(less * less, 1) / V + 1e-6)[:, None]
        hat = less * rstd
        slope = 2.0 * (hat * weight + (bias - goal)) * weight
        share = tl.sum(slope * hat, 1)[:, None] / V
        return tl.where(inside, rstd * (slope - tl.sum(slope, 1)[:, None] / V - hat * share), 0.0)
    return 2.0 * (raw - goal)


@triton.jit
def error_back(by, raw, x, value, weight, bias, inside, V: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr):
    """The gradient of `raw`, from that of its error."""
    if NORM:
        goal = value
        if RESIDUAL:
            goal = value - x
        less = tl.where(inside, raw - tl.sum(raw, 1)[:, None] / V, 0.0)
        rstd = tl.rsqrt(tl.sum(less * less, 1) / V + 1e-6)[:, None]
        hat = less * rstd
        slope = 2.0 * (hat * weight + (bias - goal)) * weight
        share = tl.sum(slope * hat, 1)[:, None] / V
        found = rstd * (slope - tl.sum(slope, 1)[:, None] / V - hat * share)
        by_share = tl.sum(by * hat, 1)[:, None] / V
        by_slope = rstd * (by - tl.sum(by, 1)[:, None] / V - hat * by_share)
        by_hat = by_slope * (2.0 * weight * weight) - rstd * (by * share + slope * by_share)
        by_hat = tl.where(inside, by_hat, 0.0)
        within = by_hat - tl.sum(by_hat, 1)[:, None] / V - hat * (tl.sum(by_hat * hat, 1)[:, None] / V)
        return tl.where(inside, rstd * (within - hat * (tl.sum(by * found, 1)[:, None] / V)), 0.0)
    return 2.0 * by


@triton.jit
def gated(gate, up):
    """silu(gate) up, and its derivatives by gate and by up."""
    squashed = tl.sigmoid(gate)
    opened = gate * squashed
    return opened * up, squashed * (1.0 + gate * (1.0 - squashed)) * up, opened


@triton.jit
def gelu(x):
    """x Phi(x), its derivative, and the derivative of that; Phi the normal distribution."""
    below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    density = tl.exp(-0.5 * x * x) * 0.3989422804014327
    return x * below, below + x * density, density * (2.0 - x * x)


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


def tile_of(size, most):
    """Tokens of a tile of chunks of `size` tokens."""
    return max(16, min(most, triton.next_power_of_2(size)))
