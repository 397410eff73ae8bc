"""The oracle's formulas, each from docs/language.md or the paper that it names; dense.py makes whole models of them.

Legend: n queries of a call, L all keys so far; D key width. Attributes `a` and kinds are read as data.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

# ---- which keys a query sees -------------------------------------------------------------------------------------------


def sees(kind, i: int, j: int, length: int, causal: bool) -> bool:
    """Whether the query at position i sees the key at position j of the sequence."""
    if causal and j > i:
        return False
    match kind.kind:
        case "full":
            return True
        case "window":
            return abs(i // kind.aligned - j // kind.aligned) < count(kind.n, length) // kind.aligned
        case "sink":
            return j < kind.n
        case "block_local":
            n = count(kind.n, length)
            later = int(n * kind.shift.percent / 100)
            return math.floor((i - later) / n) == math.floor((j - later) / n)
        case "stride":
            return (i - j) % kind.n == 0
        case "power_of_two":
            return abs(i // kind.n - j // kind.n) in {0, *(2**e for e in range(40))}
        case "persistent":
            return False
    raise AssertionError(f"no formula for {kind.kind}")


def count(n, length: int) -> int:
    """A number of tokens, or a share of the length: rounded down, at least 1."""
    return n if isinstance(n, int) else max(1, int(length * n.percent / 100))


@functools.lru_cache(maxsize=512)
def mask(keys: tuple, past: int, n: int, length: int, causal: bool) -> torch.Tensor:
    """bool [n, past + n]: key j is in some set of the union, for the queries at positions past, past + 1, ..."""
    rows = [[any(sees(kind, i, j, length, causal) for kind in keys) for j in range(past + n)] for i in range(past, past + n)]
    return torch.tensor(rows, dtype=torch.bool).reshape(n, past + n)


# ---- positions -----------------------------------------------------------------------------------------------------------


def rotated(x: torch.Tensor, places: torch.Tensor, a) -> torch.Tensor:
    """x [n, D] turned by places [n]: pair p of the first rope_dim channels is (x[p], x[p + rope_dim / 2])."""
    speeds, factor = frequencies(a)
    turns = places.to(torch.float32)[:, None] * speeds
    cos, sin = (turns.cos() * factor).to(x.dtype), (turns.sin() * factor).to(x.dtype)
    half = a.rope_dim // 2
    first, second, rest = x[:, :half], x[:, half : a.rope_dim], x[:, a.rope_dim :]
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=1)


@functools.lru_cache(maxsize=512)
def frequencies(a) -> tuple[torch.Tensor, float]:
    """(radians a position of each pair, fp32; the factor of what is rotated)."""
    power = torch.arange(0, a.rope_dim, 2, dtype=torch.float32) / a.rope_dim
    plain = 1.0 / (float(a.rope) ** power)
    scale = a.rope_scale
    match getattr(scale, "word", None):
        case None:
            return plain, 1.0
        case "linear":
            return plain / scale.factor, 1.0
        case "yarn":
            return yarn(a, plain, power)
        case "llama3":
            return torch.stack([llama3(speed, scale) for speed in plain]), 1.0
    raise AssertionError(f"no formula for {scale}")


def yarn(a, plain: torch.Tensor, power: torch.Tensor) -> tuple[torch.Tensor, float]:
    """arXiv 2309.00071: pairs that turn 32 times over the trained length are kept, below once stretched; a ramp between."""
    scale, dim = a.rope_scale, a.rope_dim

    def pair(turns):
        return dim * math.log(scale.original / (turns * 2 * math.pi)) / (2 * math.log(float(a.rope)))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (0.001 if low == high else high - low)
    kept = 1 - ramp.clamp(0, 1)
    stretched = 1.0 / (scale.factor * float(a.rope) ** power)
    return stretched * (1 - kept) + plain * kept, 0.1 * math.log(scale.factor) + 1 if scale.factor > 1 else 1.0


def llama3(speed: torch.Tensor, scale) -> torch.Tensor:
    """Long waves are stretched, short ones kept, those between mixed."""
    wave = 2 * math.pi / speed
    if wave < scale.original / scale.high:
        return speed
    if wave > scale.original / scale.low:
        return speed / scale.factor
    smooth = (scale.original / wave - scale.low) / (scale.high - scale.low)
    return (1 - smooth) * speed / scale.factor + smooth * speed


def block(keys) -> int:
    """The block size that `positions = chunk` counts by."""
    for kind in keys:
        if kind.kind in ("block_local", "power_of_two", "summary"):
            return kind.n
        if kind.kind == "window" and kind.aligned > 1:
            return kind.aligned
    raise AssertionError("no blocks in the union")


# ---- from logits to weights ----------------------------------------------------------------------------------------------


def softmax(s: torch.Tensor, seen: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """Weights [n, L] of the visible logits; the sink's logit takes its part and gives nothing."""
    s = s.masked_fill(~seen, -math.inf)
    if sink is not None:
        s = torch.cat((s, sink.expand(len(s), 1)), dim=1)
    return torch.softmax(s, dim=1)[:, : seen.shape[1]]


def softplus(s: torch.Tensor, seen: torch.Tensor, exponent: float) -> torch.Tensor:
    """LSSAR (arXiv 2501.13428): A = softplus(s log N) over its sum; relu(A N - O)^p over its sum, O = 1 beyond three keys."""
    rows = []
    for logits, visible in zip(s, seen, strict=True):
        n = int(visible.sum())
        a = F.softplus(logits * math.log(max(n, 1))) * visible
        r = torch.relu(a / a.sum() * n - (1 if n > 3 else 0))
        r = (r / r.max()) ** exponent if r.max() > 0 else torch.zeros_like(r)
        rows.append(r / r.sum() if r.sum() > 0 else r)
    return torch.stack(rows)


def score_weights(s: torch.Tensor, seen: torch.Tensor, a, sink: torch.Tensor | None) -> torch.Tensor:
    """Weights [n, L] of the visible logits [n, L] under the score that the attributes name; zeros where nothing is seen."""
    match a.score:
        case "uniform":
            weights = seen.to(s.dtype) / seen.sum(dim=1, keepdim=True)
        case "softmax":
            weights = softmax(s, seen, sink)
        case score:
            weights = softplus(s, seen, score.exponent)
    return torch.where(seen.any(dim=1, keepdim=True), weights, 0.0)


# ---- small layers ----------------------------------------------------------------------------------------------------------


def rms(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * weight + bias


def l2(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def silu(x):
    return x * torch.sigmoid(x)


def convolved(history: torch.Tensor, n: int, weight: torch.Tensor) -> torch.Tensor:
    """The last n rows of history [L, C], each channel a causal convolution with weight [C, taps], the newest tap last."""
    taps = weight.shape[1]
    padded = torch.cat((history.new_zeros(taps - 1, history.shape[1]), history))
    rows = range(len(history) - n, len(history))
    return torch.stack([(padded[row : row + taps].T * weight).sum(1) for row in rows])
