"""The lines of a class whose keys and values come from one latent (`kv_latent`; DeepSeek-V2's attention, arXiv 2405.04434)."""

from __future__ import annotations

from attnc.compiler.attributes import Attributes, LogPosition
from attnc.compiler.spec import Model


def modules(a: Attributes, model: Model) -> list[str]:
    """The projections, under DeepSeek's names."""
    assert a.kv_latent is not None, "asked only where there is a latent"
    bias, out_bias = model.bias in ("qkv", "all"), model.bias == "all"
    latent = f"{a.kv_latent} + {a.rotated_key}" if a.rotated_key else f"{a.kv_latent}"
    query = f"({a.head_dim} + {a.rotated_key})" if a.rotated_key else f"{a.head_dim}"
    centre = ", centre=1" if model.norm.centre else ""
    return [
        f"self.q_proj = nn.Linear({model.dim}, {a.heads} * {query}, bias={bias})",
        f"self.kv_a_proj_with_mqa = nn.Linear({model.dim}, {latent}, bias={bias})",
        f"self.kv_a_layernorm = RMSNorm({a.kv_latent}, {model.norm.epsilon!r}{centre})",
        f"self.kv_b_proj = nn.Linear({a.kv_latent}, {a.kv_heads} * ({a.head_dim} + {a.value_dim}), bias=False)",
        f"self.o_proj = nn.Linear({a.heads} * {a.value_dim}, {model.dim}, bias={out_bias})",
    ]


def body(a: Attributes, more: str) -> list[str]:
    """From x to o: q, the latent and the rotated key, then the launch, which makes keys and values of them.

    `more`: what else the launch is called with.
    """
    rotated, sink = a.rotated_key, "" if a.sink_logit is None else ", self.sink_logit"
    lines = [f"q = self.q_proj(x).unflatten(-1, ({a.heads}, {a.key_width}))  # [T, H, D]"]
    if rotated:
        lines += [
            f"latent, rotated = self.kv_a_proj_with_mqa(x).split(({a.kv_latent}, {rotated}), dim=-1)",
            "turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]",
            f"q = torch.cat((q[..., :{a.head_dim}], rotate_by(q[..., {a.head_dim}:], *turn)), dim=-1)",
            "rotated = rotate_by(rotated.unsqueeze(1), *turn)  # [T, 1, R], the same for all heads",
        ]
    else:
        lines += ["latent = self.kv_a_proj_with_mqa(x)", "rotated = latent[:, None, :0]  # no part of a key is rotated"]
    lines.append("latent = self.kv_a_layernorm(latent).unsqueeze(1)  # [T, 1, L]; with `rotated` what decoding keeps")
    if isinstance(a.temperature, LogPosition):
        numbers = f"{float(a.temperature.floor_scale)!r}, {float(a.temperature.attn_scale)!r}"
        lines.append(f"q = log_position(q, call.batch.positions, {numbers})")
    return [
        *lines,
        f"expand = Expand(self.kv_b_proj, {a.kv_heads}, {a.head_dim}, {a.value_dim})",
        f"o = self.mixes[0](q, latent, rotated, call.batch, call.slot(self.slot){sink}, expand=expand{more})  # [T, H, E]",
    ]
