"""A folder becomes a spec and the same weights; files that are wrong are said, and nothing is left behind."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TINY, change, refused, tiny_weights
from safetensors.torch import load_file, save_file

from attnc.checkpoint import import_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole Hugging Face folder."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY, indent=2))
    save_file(tiny_weights(), folder / "model.safetensors")
    return folder


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
