"""The header of a GGUF file: what it says about the model, and which tensors it holds.

Read here before transformers is asked, because transformers leaves out what it does not know instead of refusing it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from attnc.checkpoint.problem import problem, some
from attnc.dsl.diagnostic import SpecError

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
MOST_ENTRIES, MOST_DIMENSIONS, LONGEST = 1 << 20, 8, 1 << 26

UNDERSTOOD = frozenset(
    {
        "context_length",
        "block_count",
        "feed_forward_length",
        "embedding_length",
        "vocab_size",
        "rope.dimension_count",
        "rope.freq_base",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon",
        "attention.key_length",
        "attention.value_length",
    }
)
"""Keys of an architecture that reach the model which transformers makes of the file, or that the weights' shapes confirm."""

ARCHITECTURES = ("llama", "qwen2", "qwen3")
PARTS = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")


@dataclass(frozen=True)
class Header:
    """`values`: all keys but the arrays; `tensors`: for each name its shape, GGML number format, and first byte."""

    values: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]


def read(path: Path) -> Header:
    """The header of `path`. Errors: A530 where it is not a GGUF file, or cut off."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != MAGIC:
            raise problem("A530", f"{path.name} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}", file=path)
        try:
            version, count, entries = struct.unpack("<IQQ", file.read(20))
            if version not in (2, 3) or count > MOST_ENTRIES or entries > MOST_ENTRIES:
                raise problem(
                    "A530", f"{path.name} is of GGUF version {version}, or damaged; versions 2 and 3 are read", file=path
                )
            values = dict(_entry(file) for _ in range(entries))
            infos = dict(_info(file) for _ in range(count))
        except (struct.error, ValueError, KeyError, UnicodeDecodeError):
            raise _cut(path, "in its header") from None
        start = file.tell()
    align = int(values.get("general.alignment", 32))
    start += -start % align
    header = Header(
        {key: value for key, value in values.items() if value is not None},
        {name: (shape, kind, start + offset) for name, (shape, kind, offset) in infos.items()},
    )
    _check_end(path, header)
    return header


def check(path: Path, header: Header) -> None:
    """What transformers would leave out. Errors: A522 the architecture, A524 a key, A527 tensors, missing or left over."""
    architecture = header.values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        advice = f"GGUF files of {', '.join(ARCHITECTURES)} can be imported; take the Hugging Face folder of the others"
        raise problem("A522", f"general.architecture = {architecture!r} cannot be imported from GGUF", file=path, help=advice)
    errors = []
    for key, value in header.values.items():
        if key.startswith(f"{architecture}.") and key.removeprefix(f"{architecture}.") not in UNDERSTOOD:
            advice = "import the Hugging Face folder of the same model, whose config.json says what it means"
            errors.append(problem("A524", f"the config key {key} = {value!r} is not read from GGUF", file=path, help=advice))
    blocks = header.values.get(f"{architecture}.block_count", 0)
    expected = {"token_embd.weight", "output_norm.weight"}
    expected |= {f"blk.{block}.{part}.weight" for block in range(blocks) for part in PARTS}
    if architecture == "qwen2":
        expected |= {f"blk.{block}.{bias}" for block in range(blocks) for bias in BIASES}
    if architecture == "qwen3":
        expected |= {f"blk.{block}.attn_{part}_norm.weight" for block in range(blocks) for part in "qk"}
    missing = sorted(expected - header.tensors.keys())
    extra = sorted(header.tensors.keys() - expected - {"output.weight"})
    if missing:
        errors.append(problem("A527", f"{len(missing)} of {len(expected)} weights are missing: {some(missing)}", file=path))
    if extra:
        message = f"weights that the model has no place for: {some(extra)}"
        advice = "rope_freqs stretches the positions: import the Hugging Face folder" if "rope_freqs.weight" in extra else ""
        errors.append(problem("A527", message, file=path, help=advice))
    if errors:
        raise SpecError([diagnostic for error in errors for diagnostic in error.diagnostics])


def _entry(file: BinaryIO) -> tuple[str, Any]:
    key = _string(file)
    (kind,) = struct.unpack("<I", file.read(4))
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    """A number or a string; None for an array, which is passed over."""
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _number(file, NUMBERS[kind])
    inner, length = struct.unpack("<IQ", file.read(12))
    if inner in NUMBERS:
        file.seek(length * struct.calcsize(NUMBERS[inner]), 1)
    else:
        for _ in range(min(length, LONGEST)):
            _value(file, inner)
    return None


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > LONGEST:
        raise ValueError
    text = file.read(length)
    if len(text) < length:
        raise ValueError
    return text.decode("utf-8", errors="replace")


def _info(file: BinaryIO) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name = _string(file)
    dimensions = _number(file, "<I")
    if dimensions > MOST_DIMENSIONS:
        raise ValueError
    shape = tuple(_number(file, "<Q") for _ in range(dimensions))
    return name, (shape, _number(file, "<I"), _number(file, "<Q"))


def _check_end(path: Path, header: Header) -> None:
    """Tensors lie one after another, so the file must reach at least the last one's first byte."""
    size = path.stat().st_size
    cut = [name for name, (_, _, begin) in header.tensors.items() if begin >= size]
    if cut:
        raise _cut(path, f"{len(cut)} of {len(header.tensors)} tensors begin after its last byte, {some(cut)}")


def _cut(path: Path, where: str) -> SpecError:
    return problem("A530", f"{path.name} is damaged or cut off: {where}", file=path, help="copy or download the file again")
