"""Layers of gated DeltaNet between gated attention, as Qwen3-Next has them."""

from __future__ import annotations

from attnc.checkpoint.config import Config
from attnc.checkpoint.families import Family
from attnc.checkpoint.rope import Rope
from attnc.checkpoint.row import Row

_FULL, _STATES = "full_attention", "linear_attention"


def rows(config: Config, family: Family, layers: int, rope: Rope) -> tuple[Row, ...]:
    """One row for each layer. Errors: A523 for layers of experts."""
    _refuse_experts(config, layers)
    width = config.integer("head_dim", family.defaults["head_dim"])
    rotated = int(width * rope.share)
    settings = "output_gate = sigmoid" + (f", rope_dim = {rotated}" if rotated != width else "")
    both = {_FULL: f"full {{ {settings} }}", _STATES: _states(config, family)}
    return tuple(Row(both[kind], rope) for kind in _layer_types(config, layers))


def _states(config: Config, family: Family) -> str:
    """The gated delta rule with its convolutions, norms and gate."""

    def part(name: str) -> int:
        return config.integer(f"linear_{name}", family.defaults[f"linear_{name}"])

    keys, values, width = part("num_key_heads"), part("num_value_heads"), part("key_head_dim")
    if values % keys:
        raise config.refuse("linear_num_value_heads", f"a multiple of linear_num_key_heads, {keys}, is expected")
    settings = [f"heads = {values}", *([f"qk_heads = {keys}"] if keys != values else []), f"head_dim = {width}"]
    settings += [f"value_dim = {part('value_head_dim')}"] if part("value_head_dim") != width else []
    settings += [f"short_conv = {part('conv_kernel_dim')}", "qk_norm = l2", "output_norm = rms", "output_gate = silu"]
    return f"linear(update = delta, decay = scalar) {{ {', '.join(settings)} }}"


def _layer_types(config: Config, layers: int) -> list[str]:
    """What each layer is; without a list every fourth one sees all keys."""
    listed = config.get("layer_types")
    if listed is None:
        interval = config.integer("full_attention_interval", 4)
        return [_STATES if (layer + 1) % interval else _FULL for layer in range(layers)]
    if not isinstance(listed, list) or len(listed) != layers or any(one not in (_FULL, _STATES) for one in listed):
        raise config.refuse("layer_types", f"a list of {layers} times {_FULL} or {_STATES} is expected")
    return listed


def _refuse_experts(config: Config, layers: int) -> None:
    """The language has no experts: every layer's feed-forward part is a dense one."""
    experts = config.get("num_experts", 512)
    step, dense = config.integer("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
    sparse = [layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0]
    if experts != 0 and sparse:
        expected = f"the language has no experts, which {len(sparse)} of {layers} layers have; 0, or all in mlp_only_layers"
        raise config.refuse("num_experts", expected, part=str(experts))
