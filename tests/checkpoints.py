"""A Llama small enough to be written out, as a Hugging Face folder; and what its import says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from attnc.checkpoint import import_checkpoint
from attnc.dsl import SpecError

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""A Llama of 2 layers, small enough to be written out."""


def tiny_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    found = {"model.embed_tokens.weight": random(32, 16), "model.norm.weight": random(16), "lm_head.weight": random(32, 16)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (16, 16),
            "self_attn.k_proj": (8, 16),
            "self_attn.v_proj": (8, 16),
            "self_attn.o_proj": (16, 16),
            "mlp.gate_proj": (24, 16),
            "mlp.up_proj": (24, 16),
            "mlp.down_proj": (16, 24),
            "input_layernorm": (16,),
            "post_attention_layernorm": (16,),
        }.items():
            found[f"{prefix}.{name}.weight"] = random(*shape)
    return found


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}, indent=2))


def refused(path: Path, out: Path) -> dict[str, str]:
    """Code and message of every diagnostic; and nothing may be left behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(SpecError) as raised:
        import_checkpoint(path, out)
    assert sorted(out.parent.iterdir()) == before
    return {diagnostic.code: f"{diagnostic.message} [{diagnostic.help}]" for diagnostic in raised.value.diagnostics}


class _Wide:
    """torch, whose float32 is float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64(model: Any) -> Iterator[None]:
    """A model of transformers computes in float64, also what it always computes in float32: norms, angles, softmax, states.

    Afterwards its numbers are as they were. A copy in float64 would lie in a circle of references, and stay for a long time.
    """
    module = sys.modules[type(model).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", _Wide())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        model.double()
        try:
            yield
        finally:
            model.to(torch.float32)
