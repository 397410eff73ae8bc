"""Rotary positions (RoFormer, arXiv 2104.09864): half-split pairs in fp32, and the ways to stretch them over longer texts.

Angles, cosines and sines are fp32 whatever the model's dtype, so that every dtype means the same rotation; the products are in
fp32, or in float64 where the input is. The formulas and their rounding are those of Hugging Face transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearScale:
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): slow pairs are divided by `factor`, fast ones kept; `original` is the trained length."""

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1: wavelengths above original / low are stretched by `factor`, those below original / high kept."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class Rope:
    """The first `dim` (even) channels of a head are rotated, pair p by position * base^(-2p / dim) before the scale."""

    dim: int
    base: float
    scale: LinearScale | Yarn | Llama3 | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """The same as plain values."""
        match self.scale:
            case None:
                return (self.dim, self.base)
            case LinearScale(factor):
                return (self.dim, self.base, "linear", factor)
            case Yarn(factor, original, fast, slow):
                return (self.dim, self.base, "yarn", factor, original, fast, slow)
            case Llama3(factor, low, high, original):
                return (self.dim, self.base, "llama3", factor, low, high, original)


def frequencies(rope: Rope) -> tuple[Tensor, float]:
    """(radians per position [dim / 2] fp32 on the CPU, factor of the rotated vectors: YaRN's attention factor, else 1)."""
    steps = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    wave = rope.base**steps
    match rope.scale:
        case None:
            return 1.0 / wave, 1.0
        case LinearScale(factor):
            return (1.0 / wave) / factor, 1.0
        case Yarn() as yarn:
            return _yarn(rope, yarn, wave)
        case Llama3() as llama:
            return _llama3(llama, 1.0 / wave), 1.0


def _yarn(rope: Rope, yarn: Yarn, wave: Tensor) -> tuple[Tensor, float]:
    def pair(turns: float) -> float:
        """The pair that makes `turns` turns over the trained length."""
        return rope.dim * math.log(yarn.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = max(math.floor(pair(yarn.fast)), 0), min(math.ceil(pair(yarn.slow)), rope.dim - 1)
    width = high - low if high != low else 0.001
    keep = 1 - ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    stretched = 1.0 / (yarn.factor * wave)
    factor = 0.1 * math.log(yarn.factor) + 1.0 if yarn.factor > 1 else 1.0
    return stretched * (1 - keep) + (1.0 / wave) * keep, factor


def _llama3(llama: Llama3, radians: Tensor) -> Tensor:
    length = 2 * math.pi / radians
    slow, fast = length > llama.original / llama.low, length < llama.original / llama.high
    smooth = (llama.original / length - llama.low) / (llama.high - llama.low)
    between = (1 - smooth) * radians / llama.factor + smooth * radians
    return torch.where(slow, radians / llama.factor, torch.where(fast, radians, between))


_MADE: dict[tuple[object, ...], tuple[Tensor, float]] = {}
"""What `on_device` has made: a compiled model reads it as a constant."""


def on_device(rope: Rope, device: torch.device) -> tuple[Tensor, float]:
    """`frequencies` on a device, made once."""
    key = (*rope.key, device)
    if key in _MADE:
        return _MADE[key]
    if torch.compiler.is_compiling():  # nothing of a compiled graph may outlive it
        radians, factor = frequencies(rope)
        return radians.to(device), factor
    with torch.inference_mode(False):
        radians, factor = frequencies(rope)
        _MADE[key] = radians.to(device), factor
    return _MADE[key]


def angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., dim / 2] fp32 at positions [...] (integers, or places that need not be)."""
    radians, factor = on_device(rope, positions.device)
    turned = positions.unsqueeze(-1).to(torch.float32) * radians
    return turned.cos() * factor, turned.sin() * factor


def rotate(x: Tensor, positions: Tensor, rope: Rope | None) -> Tensor:
    """x [T, heads, D] at positions [T] -> the same shape and dtype, its first rope.dim channels rotated. None: x itself.

    Several calls with the same positions can share `angles` by calling `rotate_by` themselves.
    """
    return x if rope is None else rotate_by(x, *angles(rope, positions))


def rotate_by(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D], cos and sin [T, dim / 2] (or any shapes that broadcast to [..., 1, dim / 2] beside x)."""
    half = cos.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.unsqueeze(-2).to(wide), sin.unsqueeze(-2).to(wide)
    first, second, rest = x[..., :half].to(wide), x[..., half : 2 * half].to(wide), x[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, rest.expand(*turned.shape[:-1], -1)), dim=-1) if rest.shape[-1] else turned


def undo(x: Tensor, positions: Tensor, rope: Rope | None) -> Tensor:
    """x [T, heads, D] as it was before `rotate` turned it at positions [T]."""
    if rope is None:
        return x
    cos, sin = angles(rope, positions)
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(wide), sin.to(wide)
    length = cos.square() + sin.square()  # not quite 1, as both are rounded; with YaRN its factor squared
    return rotate_by(x, cos / length, -sin / length)
