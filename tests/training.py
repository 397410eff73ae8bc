"""Small built folders and trainers over them, for tests of `attnc train`."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_text
from attnc.tasks.examples import Examples
from attnc.train.report import Settings
from attnc.train.trainer import Trainer

HEAD = "vocab = 32, dim = 16, layers = 2, heads = 2, head_dim = 8, ffn = swiglu(16), norm = rms(1e-6), rope = 10000"
MIXED = "0: window(4), 1: full"
LENGTH = 12


def text_of(layers: str = MIXED, recipe: str = "", head: str = HEAD) -> str:
    return f"model m {{ {head} }}\nlayers {{ {layers} }}\n" + (f"recipe {{ {recipe} }}\n" if recipe else "")


@functools.cache
def _top() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="attnc-training-")


@functools.cache
def built(layers: str = MIXED, head: str = HEAD) -> Path:
    """A folder with these layers that no test changes; built once."""
    folder = Path(_top().name) / f"built{len(list(Path(_top().name).iterdir()))}"
    build(check_text(text_of(layers, "", head)), folder, Options(seed=0))
    return folder


def settings(**changes: object) -> Settings:
    usual = {
        "task": "copy",
        "steps": 4,
        "length": LENGTH,
        "batch": 2,
        "accumulate": 1,
        "lr": 1e-2,
        "warmup": 0,
        "clip": 1.0,
        "decay": 0.1,
        "every": 2,
        "keep": 2,
        "seed": 0,
        "rank": 2,
        "alpha": 4.0,
        "device": "cpu",
        "dtype": "float32",
        "compiled": False,
    }
    return Settings(**{**usual, **changes})


def trainer(
    scratch: Path,
    layers: str = MIXED,
    recipe: str = "",
    head: str = HEAD,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> Trainer:
    """A trainer of a fresh model with these layers, by this recipe."""
    folder = built(layers, head)
    spec = check_text(text_of(layers, recipe, head))
    return Trainer(attnc.load(folder, dtype=dtype), spec, settings(**changes), scratch / "teacher", str(folder))


def examples(rows: int = 2, seed: int = 0, length: int = LENGTH, vocabulary: int = 32) -> Examples:
    """Random texts, every next token asked."""
    draw = torch.randint(0, vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return Examples(draw[:, :-1], draw[:, 1:].clone())
