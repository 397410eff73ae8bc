"""Every family and every key of a configuration become what a spec says, or a named refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY

from attnc.checkpoint import CODES, import_checkpoint
from attnc.checkpoint.body import body
from attnc.checkpoint.config import Config
from attnc.checkpoint.families import FAMILIES, FIXED, IGNORED, READ
from attnc.checkpoint.numbers import number
from attnc.checkpoint.spec_text import model_name, selector, spec_text
from attnc.compiler.check import check
from attnc.compiler.spec import Attention, Spec
from attnc.dsl import Source, SpecError, parse


def text_of(**values: Any) -> str:
    return spec_text("m", "m", body(Config.of(TINY | {"architectures": None} | values, "config.json")))


def spec_of(**values: Any) -> Spec:
    return check(parse(Source("m.attn", text_of(**values))))


def windows(spec: Spec) -> list[str]:
    """For each layer its key set and rotary setting, in short."""
    found = []
    for layer in spec.layers:
        assert isinstance(layer.mixer, Attention)
        (key,) = layer.mixer.keys
        found.append(f"{key.kind}{getattr(key, 'n', '')}@{layer.mixer.attributes.rope and f'{layer.mixer.attributes.rope:g}'}")
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_and_keys_are_those_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(name)
    family = FAMILIES[name]
    written = config.to_dict()
    assert not [key for key in written if not family.knows(key)]
    for key, value in family.defaults.items():
        if key == "sliding_window" and "use_sliding_window" in family.read:
            continue  # transformers hides it while it is turned off
        assert written[key] == value, key
    assert config.default_theta == (
        {"global": family.theta, "local": family.local_theta} if family.local_theta else family.theta
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_no_key_is_in_two_sets(name: str) -> None:
    family = FAMILIES[name]
    read, fixed, ignored = READ | family.read, set(FIXED) | set(family.fixed), IGNORED | family.ignored
    assert not read & fixed | read & ignored | fixed & ignored


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"model_type": "llama", "rope_theta": 5e5}, ["full@500000"] * 4),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, ["full@7"] * 4),
        ({"model_type": "mistral", "sliding_window": 8}, ["window8@10000"] * 4),
        ({"model_type": "mistral", "sliding_window": None}, ["full@10000"] * 4),
        ({"model_type": "mistral"}, ["window4096@10000"] * 4),
        ({"model_type": "qwen2", "sliding_window": 8}, ["full@10000"] * 4),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            ["full@10000"] + ["window8@10000"] * 3,
        ),
        (
            {"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
            ["window8@10000"] * 4,
        ),
        ({"model_type": "smollm3", "no_rope_layer_interval": 2}, ["full@2e+06", "full@None"] * 2),
        ({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 1]}, ["full@None"] + ["full@2e+06"] * 3),
        ({"model_type": "gemma"}, ["full@10000"] * 4),
        ({"model_type": "gemma2", "sliding_window": 8}, ["window8@10000", "full@10000"] * 2),
        ({"model_type": "gemma2", "layer_types": ["full_attention"] * 4}, ["full@10000"] * 4),
        (
            {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2, "rope_local_base_freq": 3.0},
            ["window8@3", "full@1e+06"] * 2,
        ),
        (
            {
                "model_type": "gemma3_text",
                "sliding_window": 8,
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 6.0},
                },
            },
            ["window8@6"] * 3 + ["full@5"],
        ),
    ],
)
def test_layers_see_what_their_family_says(values: dict[str, Any], rows: list[str]) -> None:
    assert windows(spec_of(num_hidden_layers=4, **values)) == rows


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scale = linear(4)"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 9.0}}, "rope = 9, rope_scale = linear(2.5)"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            "rope_scale = llama3(factor = 8, low = 1, high = 4, original = 8192)",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
            "rope_scale = yarn(4, original = 16)",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scale = yarn(4, original = 64)"),
        ({"attention_bias": True, "mlp_bias": True}, "bias = all"),
        ({"model_type": "qwen2"}, "bias = qkv"),
        ({"model_type": "qwen3"}, "head_dim = 128, qk_norm = rms"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "ffn = geglu(24)"),
        ({"head_dim": 8}, "head_dim = 8"),
        ({"rms_norm_eps": 9.999999747378752e-06}, "norm = rms(1e-5)"),
        (
            {
                "model_type": "qwen3_next",
                "num_experts": 0,
                "partial_rotary_factor": 0.5,
                "head_dim": 8,
                "full_attention_interval": 2,
            },
            "rope_dim = 4",
        ),
        ({"model_type": "qwen3_next", "num_experts": 8, "mlp_only_layers": [0, 1]}, "all: linear(update = delta"),
        (
            {"model_type": "bamba", "mamba_n_heads": 4, "attn_layer_indices": [1], "time_step_limit": [0.0, float("inf")]},
            "ssm(mamba2, state = 256) { heads = 4, head_dim = 8, short_conv = 4, output_gate = silu, output_norm = rms }",
        ),
        ({"model_type": "gemma"}, "norm = rms(1e-6, centre = 1), tie = true"),
        ({"model_type": "gemma"}, "embedding_scale = 4"),
        ({"model_type": "gemma2"}, "norm_place = sandwich"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 64}, "score_cap = 50, logit_cap = 30, score_scale = 0.125"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 5.0}, "logit_cap = 5"),
    ],
)
def test_settings_say_what_the_configuration_says(values: dict[str, Any], written: str) -> None:
    assert written in text_of(**values)
    spec_of(**values)


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"model_type": "mixtral"}, "A522", "'mixtral'"),
        ({"model_type": "lama"}, "A522", "did you mean `llama`?"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "A523", "architectures"),
        ({"num_local_experts": 8}, "A524", "num_local_experts = 8"),
        ({"quantization_config": {"bits": 4}}, "A523", 'quantization_config = {"bits": 4}'),
        ({"hidden_act": "relu2"}, "A523", 'hidden_act = "relu2"'),
        ({"attention_bias": True}, "A523", "attention_bias = true"),
        ({"partial_rotary_factor": 0.5}, "A523", "partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "A523", "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}}, "A523", "rope_type 'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}}, "A523", "beta_fast 16"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}}, "A523", "attention_factor 1.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "A523", "factor None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "wavelength": 3}}, "A523", "wavelength 3"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "A523", "partial_rotary_factor 0.25"),
        ({"model_type": "qwen3", "attention_bias": True}, "A523", "attention_bias = true"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "A523", "use_bidirectional_attention"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 2}, "A523", "chunked_attention"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "A523", "layer_types"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "A523", "no_rope_layers"),
        ({"model_type": "qwen3_next", "num_experts": 512}, "A523", "no experts, which 2 of 2 layers have"),
        (
            {"model_type": "qwen3_next", "mlp_only_layers": [0], "num_experts": 8},
            "A523",
            "no experts, which 1 of 2 layers have",
        ),
        ({"model_type": "qwen3_next", "num_experts": 0, "layer_types": ["mamba"] * 2}, "A523", "layer_types"),
        (
            {"model_type": "qwen3_next", "num_experts": 0, "linear_num_key_heads": 3, "linear_num_value_heads": 4},
            "A523",
            "a multiple of linear_num_key_heads, 3,",
        ),
        ({"model_type": "bamba", "mamba_n_groups": 2}, "A523", "mamba_n_groups = 2"),
        ({"model_type": "bamba", "time_step_limit": [0.001, 0.1]}, "A523", "time_step_limit"),
        ({"model_type": "bamba", "mamba_n_heads": 4, "mamba_d_head": 9}, "A523", "32 / 4, is expected"),
        ({"model_type": "bamba", "mamba_n_heads": 4, "attn_layer_indices": [2]}, "A523", "attn_layer_indices"),
        ({"vocab_size": None}, "A525", "vocab_size is missing"),
        ({"hidden_size": "16"}, "A525", 'hidden_size is "16"'),
        ({"rms_norm_eps": -1}, "A525", "rms_norm_eps is -1"),
        ({"tie_word_embeddings": "yes"}, "A525", 'tie_word_embeddings is "yes"'),
    ],
)
def test_what_cannot_be_said_is_named(values: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(SpecError) as raised:
        text_of(**({"architectures": None} | values))
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code == code
    assert said in f"{diagnostic.message} {diagnostic.help}"
    key = list(values)[-1]
    assert diagnostic.span.text.startswith(f'"{key}"')


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        text_of(num_local_experts=8, auto_map={"AutoModel": "x"}, attention_multiplier=2.0)
    assert [diagnostic.code for diagnostic in raised.value.diagnostics] == ["A524", "A523", "A524"]


def test_every_code_is_listed_and_listed_codes_are_used() -> None:
    folder = Path(import_checkpoint.__code__.co_filename).parent
    text = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "codes.py")
    assert {code for code in CODES if f'"{code}"' in text} == set(CODES)


# Text


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ([2, 5, 8, 11], "every(3)"),
        ([0, 3, 6, 9], "every(3, at = 0)"),
        ([0, 1, 4, 5, 8, 9], "every(4, at = [0, 1])"),
        ([0, 1, 2], "0..2"),
        ([0, 1, 11], "[0..1, 11]"),
        ([7], "7"),
    ],
)
def test_layers_are_selected_as_a_person_would(chosen: list[int], text: str) -> None:
    assert selector([layer in chosen for layer in range(12)]) == text


@pytest.mark.parametrize(
    ("name", "word"),
    [("SmolLM2-135M", "smollm2_135m"), ("7b", "model_7b"), ("layers", "layers_"), ("Ü-x", "x"), ("", "model_")],
)
def test_a_files_name_becomes_a_name_of_the_language(name: str, word: str) -> None:
    assert model_name(name) == word


def test_a_checkpoint_cannot_write_into_the_spec() -> None:
    text = spec_text("m", "evil\nmodel x { }\r\x1b[2J # ", body(Config.of(TINY, "config.json")))
    assert text.splitlines()[0] == "# evil model x { } [2J #"
    assert text.splitlines()[1] == "model m {"


@pytest.mark.parametrize(
    ("value", "text"), [(1e-6, "1e-6"), (500000.0, "500000"), (0.0625, "0.0625"), (1e-5, "1e-5"), (8, "8")]
)
def test_numbers_are_short_and_exact(value: float, text: str) -> None:
    assert number(value) == text
    assert float(text) == value
