"""The table of config keys: what each family of checkpoints says, what it may leave unsaid, and what has no effect.

Every key of a config.json is in exactly one of four sets: read (the importer uses it), fixed (only the named values can be
said), ignored (no effect on what the model computes), or unknown, which stops the import. Defaults are those of
transformers 5.23.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

READ = frozenset(
    {
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "architectures",
    }
)

FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "auto_map": (),
    "cross_attention_hidden_size": (),
    "encoder_no_repeat_ngram_size": (0,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1, 1.0),
    "pruned_heads": ({},),
    "quantization_config": (),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_bfloat16": (False,),
    "use_bidirectional_attention": (False,),
}
"""Keys of every family that have a say, with the values that the language can say; null always counts as unsaid."""

IGNORED = frozenset(
    {
        # how it was trained, stored and run
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_model_name_or_path",
        "_name_or_path",
        "attention_dropout",
        "attn_implementation",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "initializer_range",
        "is_llama_config",
        "pretraining_tp",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "transformers.js_config",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        # other heads and outputs
        "finetuning_task",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "decoder_start_token_id",
        "prefix",
        "task_specific_params",
        "tokenizer_class",
        "unk_token_id",
        # defaults of generation that old configurations repeat
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "suppress_tokens",
        "temperature",
        "tf_legacy_loss",
        "top_k",
        "top_p",
        "typical_p",
    }
)

GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Family:
    """One model type of transformers: its architecture's class name, its keys beside the common ones, and its defaults."""

    architecture: str
    read: frozenset[str] = frozenset()
    fixed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    defaults: dict[str, Any] = field(default_factory=dict)
    theta: float = 10000.0
    local_theta: float | None = None
    activation: str = "hidden_act"
    qk_norm: bool = False
    qkv_bias: bool = False
    gemma: bool = False
    """Norms multiply by (1 + weight), embeddings by sqrt(hidden_size)."""
    sandwich: bool = False
    centre: bool = False
    """Norms multiply by (1 + weight)."""
    states: bool = False
    """Layers of the type `linear_attention` are gated DeltaNet; queries of the others have a gate each."""
    spaces: bool = False
    """Layers that are not listed as attention are Mamba-2."""
    rotated: float = 1.0
    """The share of a head's channels that is rotated."""

    def only(self, key: str) -> tuple[Any, ...] | None:
        """The values that `key` may have, where it has a say and the language can say some alone."""
        if key == "partial_rotary_factor" and self.rotated != 1:
            return None
        return (FIXED | self.fixed).get(key)

    def knows(self, key: str) -> bool:
        """Whether `key` is in one of the three sets."""
        return key in READ | IGNORED | self.read | self.ignored or key in FIXED or key in self.fixed


_WINDOWS = frozenset({"use_sliding_window", "sliding_window", "layer_types"})
_LLAMA = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
_GEMMA = {"rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True}
_QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DELTA = {"conv_kernel_dim": 4, "key_head_dim": 128, "value_head_dim": 128, "num_key_heads": 16, "num_value_heads": 32}
_MAMBA = {"n_heads": 128, "d_state": 256, "d_conv": 4, "expand": 2}
_SOFTCAPS = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"})

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        read=frozenset({"hidden_act", "attention_bias", "mlp_bias"}),
        defaults=_LLAMA | {"attention_bias": False, "mlp_bias": False, "max_position_embeddings": 2048},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        read=frozenset({"hidden_act", "sliding_window"}),
        defaults=_LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        read=frozenset({"hidden_act", "max_window_layers"}) | _WINDOWS,
        fixed={"use_mrope": (False,)},
        defaults=_LLAMA | _QWEN,
        qkv_bias=True,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        read=frozenset({"hidden_act", "max_window_layers"}) | _WINDOWS,
        fixed={"attention_bias": (False,)},
        defaults=_LLAMA | _QWEN | {"head_dim": 128},
        qk_norm=True,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        read=frozenset({"hidden_act", "attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"}) | _WINDOWS,
        ignored=frozenset({"max_window_layers"}),
        defaults=_LLAMA
        | {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 4, "use_sliding_window": False}
        | {"no_rope_layer_interval": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True},
        theta=2000000.0,
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        read=frozenset({"hidden_act", "layer_types", "full_attention_interval"})
        | {"num_experts", "decoder_sparse_step", "mlp_only_layers"}
        | {f"linear_{part}" for part in _DELTA},
        fixed={"attention_bias": (False,)},
        ignored=frozenset({"moe_intermediate_size", "shared_expert_intermediate_size", "num_experts_per_tok"})
        | {"norm_topk_prob", "output_router_logits", "router_aux_loss_coef"},
        defaults=_LLAMA
        | {"num_key_value_heads": 2, "max_position_embeddings": 32768, "head_dim": 256}
        | {f"linear_{part}": number for part, number in _DELTA.items()},
        qk_norm=True,
        centre=True,
        states=True,
        rotated=0.25,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        # configurations of the first release say gelu and mean the tanh form; transformers reads them so
        fixed={"attention_bias": (False,), "hidden_act": (GELU, "gelu"), "hidden_activation": (GELU,)},
        defaults=_GEMMA | {"num_key_value_heads": 16, "hidden_act": GELU, "max_position_embeddings": 8192},
        gemma=True,
    ),
    "bamba": Family(
        "BambaForCausalLM",
        read=frozenset({"hidden_act", "attention_bias", "mlp_bias", "attn_layer_indices", "mamba_d_head"})
        | {f"mamba_{part}" for part in _MAMBA},
        fixed={
            "mamba_conv_bias": (True,),
            "mamba_n_groups": (1,),
            "mamba_proj_bias": (False,),
            "partial_rotary_factor": (0.5,),
            "time_step_limit": ([0.0, math.inf], [0.0, {"__float__": "Infinity"}]),
        },
        ignored=frozenset({"mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient"}),
        defaults=_LLAMA
        | {"rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 262144}
        | {"num_key_value_heads": 8}
        | {f"mamba_{part}": number for part, number in _MAMBA.items()},
        spaces=True,
        rotated=0.5,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        read=frozenset({"hidden_activation", "sliding_window", "layer_types"}) | _SOFTCAPS,
        fixed={"attention_bias": (False,)},
        ignored=frozenset({"hidden_act"}),
        defaults=_GEMMA
        | {"num_key_value_heads": 4, "hidden_activation": GELU, "max_position_embeddings": 8192, "sliding_window": 4096}
        | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        activation="hidden_activation",
        gemma=True,
        sandwich=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        read=frozenset({"hidden_activation", "sliding_window", "layer_types", "rope_local_base_freq"})
        | {"sliding_window_pattern", "_sliding_window_pattern"}
        | _SOFTCAPS,
        fixed={"attention_bias": (False,)},
        ignored=frozenset({"hidden_act"}),
        defaults=_GEMMA
        | {"num_key_value_heads": 4, "hidden_activation": GELU, "max_position_embeddings": 131072, "sliding_window": 4096}
        | {"query_pre_attn_scalar": 256},
        theta=1000000.0,
        local_theta=10000.0,
        activation="hidden_activation",
        qk_norm=True,
        gemma=True,
        sandwich=True,
    ),
}
"""Every model type that can be imported."""
