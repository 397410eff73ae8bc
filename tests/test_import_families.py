"""Every family that can be imported, tiny and with random weights: imported, built, and compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import in_float64
from safetensors.torch import load_file

import attnc
from attnc.checkpoint import import_checkpoint
from attnc.checkpoint.adapters import ADAPTERS

TOKENS = 48
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied, with biases": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16,
    },
    "llama, linear": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    "llama, llama3": {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    "llama, yarn": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "qwen3_next": {
        "model_type": "qwen3_next",
        "head_dim": 16,
        "num_experts": 0,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    },
    "bamba": {
        "model_type": "bamba",
        "attn_layer_indices": [2],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 5,
    },
    "gemma": {"model_type": "gemma", "head_dim": 16},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}


def model_of(values: dict[str, Any]) -> Any:
    """transformers' model with weights large enough that every part of it shows in the logits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(values)
    config = AutoConfig.for_model(values.pop("model_type"), **(SMALL | values))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.5 if weight.dim() == 1 else 0.3))
            if "norm" in name and "gemma" not in config.model_type:
                weight.add_(1)
    return model.eval()


@pytest.fixture(params=CASES)
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    model = model_of(CASES[request.param])
    model.save_pretrained(tmp_path / "checkpoint")
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "imported.attn")
    return model, tmp_path


@torch.inference_mode()
def test_an_imported_model_computes_what_transformers_computes(imported: tuple[Any, Path]) -> None:
    model, folder = imported
    written = load_file(folder / "imported/model.safetensors")
    weights = dict(model.named_parameters())
    if model.config.model_type not in ADAPTERS:
        assert written.keys() == weights.keys()
        assert all(torch.equal(written[name], weight) for name, weight in weights.items())
    numbers = [torch.cat([one.flatten() for one in found.values()]).sort().values for found in (written, weights)]
    assert torch.equal(*numbers)  # each once, whatever it is called

    attnc.build(attnc.check(folder / "imported.attn"), folder / "built", weights=folder / "imported")
    built = attnc.load(folder / "built", device="cpu", dtype=torch.float32)
    tokens = torch.randint(0, SMALL["vocab_size"], (2, TOKENS), generator=torch.Generator().manual_seed(1))
    theirs = model(tokens).logits
    with in_float64(model):
        exact = model(tokens).logits
    ours = built.forward(tokens).logits
    our, their = (ours.double() - exact).abs(), (theirs.double() - exact).abs()
    assert our.mean() <= 1.5 * their.mean()
