"""A small built folder whose kernels are tuned, and the GPU that they are tuned for."""

from __future__ import annotations

from pathlib import Path

from attnc.codegen.build import Options, build
from attnc.codegen.tune.tune import Target
from attnc.compiler import check_text

TEXT = """model small { vocab = 16, dim = 32, layers = 1, ffn = swiglu(16), norm = rms(1e-6), heads = 2, head_dim = 64 }
layers { all: window(7) }
"""
H200 = Target("NVIDIA H200", "sm_90", "3.6.0")


def small(path: Path) -> Path:
    """The folder, built there."""
    build(check_text(TEXT, "small.attn"), path / "small", Options())
    return path / "small"
