"""Layers of Mamba-2 between attention, as Bamba has them."""

from __future__ import annotations

from attnc.checkpoint.config import Config
from attnc.checkpoint.families import Family
from attnc.checkpoint.rope import Rope
from attnc.checkpoint.row import Row


def rows(config: Config, family: Family, layers: int, rope: Rope) -> tuple[Row, ...]:
    """One row for each layer: attention in those that are listed, state spaces in all others."""
    listed = config.get("attn_layer_indices", [])
    if not isinstance(listed, list) or any(type(one) is not int or not 0 <= one < layers for one in listed):
        raise config.refuse("attn_layer_indices", f"a list of layers below {layers} is expected")
    width = config.integer("head_dim", max(1, config.integer("hidden_size") // config.integer("num_attention_heads")))
    rotated = int(width * rope.share)
    full = "full" if rotated == width else f"full {{ rope_dim = {rotated} }}"
    space = _space(config, family)
    return tuple(Row(full if layer in listed else space, rope) for layer in range(layers))


def _space(config: Config, family: Family) -> str:
    """Mamba-2 with its convolution, its gate, and the norm behind it."""

    def part(name: str) -> int:
        return config.integer(f"mamba_{name}", family.defaults[f"mamba_{name}"])

    heads, inner = part("n_heads"), part("expand") * config.integer("hidden_size")
    width = inner // heads if config.get("mamba_d_head", "auto") == "auto" else config.integer("mamba_d_head")
    if width * heads != inner:
        raise config.refuse(
            "mamba_d_head", f"mamba_expand times hidden_size over mamba_n_heads, {inner} / {heads}, is expected"
        )
    settings = f"heads = {heads}, head_dim = {width}, short_conv = {part('d_conv')}, output_gate = silu, output_norm = rms"
    return f"ssm(mamba2, state = {part('d_state')}) {{ {settings} }}"
