"""Checkpoints whose tensors are fused or named otherwise: which rows of them are which tensors of a built model.

A table has a line for each tensor of a layer: the name behind `model.layers.{i}.` there and here, and which rows it takes.
Every row of a checkpoint's tensor is taken once, so the way back is the same table read the other way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from attnc.checkpoint.config import Config
from attnc.checkpoint.tensors import Tensor

Runs = tuple[tuple[int, int], ...]
"""(first row, how many), in order."""

LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")


class Piece(NamedTuple):
    """A tensor of a built model: name, and the rows of the checkpoint's that it is; None: all of them."""

    name: str
    runs: Runs | None = None


Table = Mapping[str, tuple[Piece, ...]]
"""Name in the checkpoint, behind the layer's where it is in one, -> the tensors that it holds."""


def adapted(found: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names of a built model. Those that the table does not name stay as they are, and so
    does one whose rows are not those that its line is about: `fit` then says what does not fit.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        match = LAYER.fullmatch(name)
        layer, behind = (match[1], match[2]) if match else ("", name)
        pieces = table.get(behind, ())
        if not pieces or not _whole(tensor, pieces):
            tensors[name] = tensor
            continue
        for piece in pieces:
            own = layer + piece.name
            tensors[own] = replace(_cut(tensor, piece.runs), name=own)
    return tensors


def _whole(tensor: Tensor, pieces: tuple[Piece, ...]) -> bool:
    """Whether the pieces take every row of a tensor once."""
    runs = [run for piece in pieces for run in piece.runs or ()]
    return not runs or (bool(tensor.shape) and sum(count for _, count in runs) == tensor.shape[0])


def _cut(tensor: Tensor, runs: Runs | None) -> Tensor:
    """Some rows of a tensor; axes of one number, as convolutions have them, are left out."""
    inner = tuple(size for size in tensor.shape[1:] if size != 1 or len(tensor.shape) == 2)
    if runs is None:
        return replace(tensor, shape=(*tensor.shape[:1], *inner))
    row = (tensor.end - tensor.begin) // tensor.shape[0]
    ranges = tuple((tensor.begin + first * row, tensor.begin + (first + count) * row) for first, count in runs)
    rows = sum(count for _, count in runs)
    return replace(tensor, shape=(rows, *inner), ranges=ranges)


def interleaved(groups: int, sizes: Mapping[str, int]) -> tuple[Piece, ...]:
    """Rows that lie group by group, each with so many rows of every name."""
    total, at, found = sum(sizes.values()), 0, []
    for name, size in sizes.items():
        found.append(Piece(name, tuple((group * total + at, size) for group in range(groups))))
        at += size
    return tuple(found)


def qwen3_next(config: Config) -> Table:
    """Gated DeltaNet's projections are fused and grouped by key heads, its convolution is one; a query's gate is behind it."""
    keys, values = config.integer("linear_num_key_heads", 16), config.integer("linear_num_value_heads", 32)
    key, value = config.integer("linear_key_head_dim", 128), config.integer("linear_value_head_dim", 128)
    heads, width = config.integer("num_attention_heads"), config.integer("head_dim", 256)
    each = values // keys  # value heads of a key head

    def own(name: str) -> str:
        return f"mixer.linear.{name}"

    projections = {own("q_proj.weight"): key, own("k_proj.weight"): key}
    projections |= {own("v_proj.weight"): each * value, own("output_gate.weight"): each * value}
    strengths = {own("erase_proj.weight"): each, own("decay_proj.weight"): each}
    channels = {own("q_conv.weight"): keys * key, own("k_conv.weight"): keys * key, own("v_conv.weight"): values * value}
    gated = {"self_attn.q_proj.weight": width, "self_attn.output_gate.weight": width}
    return {
        "linear_attn.in_proj_qkvz.weight": interleaved(keys, projections),
        "linear_attn.in_proj_ba.weight": interleaved(keys, strengths),
        "linear_attn.conv1d.weight": interleaved(1, channels),
        "linear_attn.A_log": (Piece(own("A_log")),),
        "linear_attn.dt_bias": (Piece(own("dt_bias")),),
        "linear_attn.norm.weight": (Piece(own("output_norm.weight")),),
        "linear_attn.out_proj.weight": (Piece(own("o_proj.weight")),),
        "self_attn.q_proj.weight": interleaved(heads, gated),
    }


def bamba(config: Config) -> Table:
    """Mamba-2's projections are fused: gate, input, what is written and read, steps."""
    inner = config.integer("mamba_expand", 2) * config.integer("hidden_size")
    heads, state = config.integer("mamba_n_heads", 128), config.integer("mamba_d_state", 256)
    fused = {"output_gate": inner, "in_proj": inner, "B_proj": state, "C_proj": state, "dt_proj": heads}
    same = {name: name for name in ("A_log", "D", "dt_bias", "out_proj.weight", "conv1d.weight", "conv1d.bias", "norm.weight")}
    same |= {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias", "norm.weight": "output_norm.weight"}
    parts = [f"{part}_proj.weight" for part in ("gate", "up", "down")] + [
        f"{part}_proj.bias" for part in ("gate", "up", "down")
    ]
    return {
        "mamba.in_proj.weight": interleaved(1, {f"mixer.ssm.{name}.weight": size for name, size in fused.items()}),
        **{f"mamba.{theirs}": (Piece(f"mixer.ssm.{ours}"),) for theirs, ours in same.items()},
        **{f"feed_forward.{part}": (Piece(f"mlp.{part}"),) for part in parts},
        "pre_ff_layernorm.weight": (Piece("post_attention_layernorm.weight"),),
        "model.final_layernorm.weight": (Piece("model.norm.weight"),),
    }


ADAPTERS: dict[str, Callable[[Config], Table]] = {"bamba": bamba, "qwen3_next": qwen3_next}
"""Model types whose tensors are not all named as a built model's."""


def adapt(found: Mapping[str, Tensor], config: Config) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint as a built model names them."""
    table = ADAPTERS.get(str(config.get("model_type")))
    return found if table is None else adapted(found, table(config))
