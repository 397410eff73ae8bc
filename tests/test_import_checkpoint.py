"""Checkpoints become specs: every family, every config key, every way in which files can be wrong."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnc.checkpoint import CODES, import_checkpoint
from attnc.checkpoint.body import body
from attnc.checkpoint.config import Config
from attnc.checkpoint.families import FAMILIES, FIXED, IGNORED, READ
from attnc.checkpoint.numbers import number
from attnc.checkpoint.spec_text import model_name, selector, spec_text
from attnc.compiler.check import check
from attnc.compiler.spec import Attention, Spec
from attnc.dsl import Source, SpecError, parse

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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole Hugging Face folder."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY, indent=2))
    save_file(tiny_weights(), folder / "model.safetensors")
    return folder


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


# What comes out


def test_a_folder_becomes_a_spec_and_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    report = import_checkpoint(checkpoint, tmp_path / "out.attn")
    assert (tmp_path / "out.attn").read_text() == (
        "# tiny, imported from tiny.\n"
        "model out {\n"
        "  vocab = 32, dim = 16, layers = 2, context = 64\n"
        "  ffn = swiglu(24), norm = rms(1e-6)\n"
        "  heads = 4, kv_heads = 2, head_dim = 4, rope = 10000\n"
        "}\n\n"
        "layers { all: full }\n"
    )
    written, given = load_file(tmp_path / "out/model.safetensors"), tiny_weights()
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], weight) for name, weight in given.items())
    assert report.parameters == sum(weight.numel() for weight in given.values())
    assert report.weight_bytes == (tmp_path / "out/model.safetensors").stat().st_size


def test_shards_are_put_together(checkpoint: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    (checkpoint / "model.safetensors").unlink()
    for file, part in parts.items():
        save_file({name: weights[name].bfloat16() for name in part}, checkpoint / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    report = import_checkpoint(checkpoint, tmp_path / "out.attn")
    written = load_file(tmp_path / "out/model.safetensors")
    assert report.dtype == "BF16"
    assert all(torch.equal(written[name], weight.bfloat16()) for name, weight in weights.items())

    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards are missing" in refused(checkpoint, tmp_path / "again.attn")["A520"]


def test_an_index_may_not_name_files_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tiny_weights(), "../model.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside the folder" in refused(checkpoint, tmp_path / "out.attn")["A526"]


def test_tokenizer_chat_template_and_ends_come_along(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}", "eos_token": "</s>"}))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "top_p": 0.9, "max_length": 5}))
    report = import_checkpoint(checkpoint, tmp_path / "out.attn")
    assert report.tokenizer
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"eos_token_id": [2, 7], "top_p": 0.9}


def test_a_tied_checkpoint_may_repeat_its_embedding_but_not_change_it(checkpoint: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    change(checkpoint, tie_word_embeddings=True)
    assert "differs from model.embed_tokens.weight" in refused(checkpoint, tmp_path / "out.attn")["A527"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, checkpoint / "model.safetensors")
    assert import_checkpoint(checkpoint, tmp_path / "out.attn").tie
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")


# The table of config keys


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


# Bad input


def test_missing_files_are_said(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.attn"
    assert "there is no checkpoint" in refused(tmp_path / "nowhere", out)["A520"]
    (checkpoint / "config.json").rename(checkpoint / "confg.json")
    assert "did you mean `config.json`?" not in refused(checkpoint, out)["A520"]
    assert "did you mean `confg.json`?" in refused(checkpoint, out)["A520"]
    (checkpoint / "confg.json").rename(checkpoint / "config.json")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(checkpoint, out)["A520"]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"model_type": "llama",}', "\x00\xff"])
def test_a_configuration_that_is_no_object_is_said(text: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(text)
    assert set(refused(checkpoint, tmp_path / "out.attn")) == {"A521"}


@pytest.mark.parametrize("kept", [0, 4, 9, 100, 2000, -1])
def test_a_truncated_file_is_never_taken_for_a_whole_one(kept: int, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    found = refused(checkpoint, tmp_path / "out.attn")
    assert set(found) == {"A526"}
    assert "damaged" in found["A526"]


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all.",
        b"[]" + b" " * 14,
        json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}}).encode(),
        json.dumps({"x": 1}).encode(),
        b"[" * 100_000,
    ],
)
def test_a_broken_header_is_said(header: bytes, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    assert set(refused(checkpoint, tmp_path / "out.attn")) == {"A526"}


def test_weights_that_do_not_fit_are_named(checkpoint: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    name = "model.layers.1.self_attn.k_proj.weight"
    out = tmp_path / "out.attn"

    save_file(weights | {name: torch.zeros(16, 16)}, checkpoint / "model.safetensors")
    found = refused(checkpoint, out)
    assert list(found) == ["A528"]
    assert f"{name} has shape [16, 16], and the configuration says [8, 16]" in found["A528"]

    save_file({key: weight for key, weight in weights.items() if key != name}, checkpoint / "model.safetensors")
    assert f"1 of 21 weights are missing: `{name}`" in refused(checkpoint, out)["A527"]

    save_file(weights | {"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}, checkpoint / "model.safetensors")
    assert "1 weight has no place in the model: `model.layers.2.mlp.up_proj.weight`" in refused(checkpoint, out)["A527"]

    save_file(weights | {name: weights[name].to(torch.int8)}, checkpoint / "model.safetensors")
    assert f"{name} has number format I8" in refused(checkpoint, out)["A529"]

    save_file({f"transformer.{key}": weight for key, weight in weights.items()}, checkpoint / "model.safetensors")
    assert (
        "the checkpoint's names are other ones" in refused(checkpoint, out)["A527"]
        or "no place" in refused(checkpoint, out)["A527"]
    )


def test_tables_of_old_checkpoints_are_passed_over(checkpoint: Path, tmp_path: Path) -> None:
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    save_file(tiny_weights() | table, checkpoint / "model.safetensors")
    import_checkpoint(checkpoint, tmp_path / "out.attn")
    assert load_file(tmp_path / "out/model.safetensors").keys() == tiny_weights().keys()


def test_only_an_untouched_import_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.attn"
    import_checkpoint(checkpoint, out)
    import_checkpoint(checkpoint, out)

    (tmp_path / "out/notes.txt").write_text("mine")
    assert "notes.txt" in refused(checkpoint, out)["A532"]
    (tmp_path / "out/notes.txt").unlink()
    out.write_text(out.read_text() + "# mine\n")
    assert "was changed since it was imported" in refused(checkpoint, out)["A532"]
    assert out.read_text().endswith("# mine\n")

    (tmp_path / "other").mkdir()
    assert "no import wrote it" in refused(checkpoint, tmp_path / "other.attn")["A532"]
    (tmp_path / "third.attn").write_text("mine")
    assert "no import wrote it" in refused(checkpoint, tmp_path / "third.attn")["A532"]
    assert "does not end in .attn" in refused(checkpoint, tmp_path / "fourth")["A532"]


def test_a_full_disk_leaves_what_was_there(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.attn"
    import_checkpoint(checkpoint, out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attnc.checkpoint.tensors._copy", full)
    assert "no space left on device" in refused(checkpoint, out)["A533"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_a_rename_that_fails_is_undone(
    step: int, again: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.attn"
    if again:  # old folder away, new folder in, spec in
        import_checkpoint(checkpoint, out)
        save_file({name: weight + 1 for name, weight in tiny_weights().items()}, checkpoint / "model.safetensors")
    elif step == 2:
        step = 1  # without an earlier import there is one rename less
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename = os.replace
    steps = iter(range(9))

    def failing(*paths: Path) -> None:
        if next(steps) == step:
            raise OSError(5, "Input/output error")
        rename(*paths)

    monkeypatch.setattr("attnc.checkpoint.place.os.replace", failing)
    assert "input/output error" in refused(checkpoint, out)["A533"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# GGUF


def gguf(values: dict[str, Any], tensors: list[str], *, data: bytes = bytes(4096), version: int = 3) -> bytes:
    """A GGUF file by hand: strings and numbers as values, every tensor one float32."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    def value(one: Any) -> bytes:
        return struct.pack("<I", 8) + text(one) if isinstance(one, str) else struct.pack("<II", 4, one)

    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    head += b"".join(text(key) + value(one) for key, one in values.items())
    head += b"".join(text(name) + struct.pack("<IQIQ", 1, 1, 0, 32 * at) for at, name in enumerate(tensors))
    return head + bytes(-len(head) % 32) + data


PARTS = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
WHOLE = ["token_embd.weight", "output_norm.weight", *(f"blk.0.{part}.weight" for part in PARTS)]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", "A530", "not a GGUF file"),
        (b"PK\x03\x04 a zip", "A530", "not a GGUF file"),
        (b"GGUF", "A530", "in its header"),
        (gguf({"general.architecture": "llama"}, WHOLE, version=1), "A530", "version 1"),
        (gguf({"general.architecture": "llama"}, WHOLE)[:60], "A530", "in its header"),
        (gguf({"general.architecture": "llama", "llama.block_count": 1}, WHOLE, data=b""), "A530", "begin after its last byte"),
        (gguf({"general.architecture": "rwkv"}, WHOLE), "A522", "'rwkv'"),
        (gguf({"general.architecture": "llama", "llama.expert_count": 8}, WHOLE), "A524", "llama.expert_count = 8"),
        (gguf({"general.architecture": "llama", "llama.block_count": 2}, WHOLE), "A527", "9 of 20 weights are missing"),
        (
            gguf({"general.architecture": "llama", "llama.block_count": 1}, [*WHOLE, "rope_freqs.weight"]),
            "A527",
            "rope_freqs stretches the positions",
        ),
        (gguf({"general.architecture": "llama", "llama.block_count": 1}, WHOLE, data=bytes(321)), "A530", "ends at byte"),
    ],
)
def test_a_gguf_file_that_cannot_be_imported_is_said(content: bytes, code: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    found = refused(path, tmp_path / "out.attn")
    assert said in found[code]


def test_a_missing_extra_is_said_with_the_line_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"general.architecture": "llama", "llama.block_count": 1}, WHOLE))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'attnc[hf]'" in refused(path, tmp_path / "out.attn")["A531"]
