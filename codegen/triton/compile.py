"""Compile emitted kernels for a GPU that is not there, and say what they use: registers, shared memory, spills.

An emitted module lists its kernels in `variants(architecture, element_size)`; the types of their arguments are known by name.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from attnc.codegen.triton.versions import INTERPRETS, compile_kernel, descriptor

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Bytes of shared memory that one block of threads may take."""

DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
_ELEMENTS = frozenset(
    {
        *("q", "k", "v", "o", "q_grad", "k_grad", "v_grad", "o_grad", "write", "read"),
        *("e", "pairs", "erased_pairs", "inverse", "states", "values", "states_grad", "values_grad"),
        *("folded_q", "folded_k", "folded_e", "upper"),
        *("held_k", "held_v", "into_start", "up_start", "out_start"),
    }
)
_POINTERS = {
    "fp32": {
        *("u", "step", "rates", "weights", "before", "y", "after", "starts", "y_grad", "after_grad"),
        *("u_grad", "step_grad", "rates_grad", "write_grad", "read_grad", "weights_grad", "before_grad"),
        *(
            "lse",
            "lse_grad",
            "delta",
            "scale",
            "scale_grad",
            "sink_logit",
            "part_o",
            "part_norm",
            "near",
            "k_pieces",
            "v_pieces",
        ),
        *("decay", "before", "sum_before", "after", "sum_after", "sums", "norms", "strengths", "totals", "fades", "deltas"),
        *("sum_after_grad", "sum_before_grad", "sums_grad", "decay_grad", "erase_grad", "scores"),
        *("writes", "pushes", "stays", "speed", "slows", "weight", "bias", "known", "known_moment", "kept", "kept_moment"),
        *("after_moment", "kept_grad", "kept_moment_grad", "after_moment_grad", "rows_grad", "rows_moment_grad"),
        *("lr", "momentum", "into", "up", "out", "into_moment", "up_moment", "out_moment", "gates", "room"),
        *("ends", "sum_ends", "rest", "sum_starts"),
        *("known_grad", "known_moment_grad", "raws", "parts", "within", "by", "by_moment"),
        *("writes_grad", "pushes_grad", "stays_grad", "speed_grad", "slows_grad", "weight_grad", "bias_grad"),
        *("reach", "left", "goals", "row_shares", "pulls", "dots", "squares"),
    },
    "i32": {
        "rows",
        "stored",
        "base",
        "pinned",
        "ring",
        "index",
        "counts",
        "wanted",
        "interval_rows",
        "counters",
        "meets",
        "readers",
        "reader_begin",
        "chunks",
        "work",
        "spans",
    },
    "u8": {"distances", "taken"},
    "i64": {
        "begins",
        "places",
        "row_begin",
        "taken_begin",
        "offsets",
        "past",
        "k_begin",
        "v_begin",
        "k_grad_begin",
        "v_grad_begin",
    },
}
_NUMBERS = {"cap": "fp32", "factor": "fp32"}
_STRIDES = frozenset(
    {
        *("q_token_stride", "q_head_stride", "k_stride", "v_stride", "k_grad_stride", "v_grad_stride", "q_grad_stride"),
        *("k_token_stride", "k_head_stride", "v_token_stride", "v_head_stride"),
    }
)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses.

    registers  of a thread (AMD: vector registers)
    shared     bytes of shared memory of a block of threads
    spills     bytes of a thread that do not fit in its registers (AMD: registers)
    scratch    bytes of a thread's private memory, spills included
    warps, stages  as launched
    """

    kernel: str
    target: str
    dtype: str
    constants: tuple[tuple[str, int], ...]
    registers: int
    shared: int
    spills: int
    scratch: int
    warps: int
    stages: int


def load(text: str, folder: Path, name: str) -> ModuleType:
    """The module of an emitted text, written into `folder`: Triton reads its functions' source from there."""
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_ahead(text: str, target: str, dtype: str) -> tuple[Resources, ...]:
    """Compile every kernel that the emitted `text` may launch on `target` for tensors of `dtype` (a key of DTYPES)."""
    assert not INTERPRETS, "the interpreter compiles nothing"
    with tempfile.TemporaryDirectory(prefix="attnc-") as folder:
        module = load(text, Path(folder), "emitted")
        variants = module.variants(target, DTYPES[dtype])
        return tuple(_compile(kernel, constants, target, dtype, described(module, constants)) for kernel, constants in variants)


def described(module: ModuleType, constants: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The descriptors that a kernel of Gluon takes: name -> rows and columns of a block."""
    found: dict[str, tuple[int, int]] = module.descriptors(constants) if hasattr(module, "descriptors") else {}
    return found


def signature(
    kernel: Any, constants: dict[str, Any], dtype: str, blocks: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> dict[str, str]:
    """Triton's types of a kernel's run-time arguments, in order; `blocks` of its descriptors."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            continue
        if name in blocks:
            types[name] = descriptor(dtype, *blocks[name])
        elif name in _ELEMENTS:
            types[name] = f"*{dtype}"
        else:
            types[name] = next((f"*{of}" for of, names in _POINTERS.items() if name in names), _NUMBERS.get(name, "i32"))
    return types


def _compile(
    kernel: Any, constants: dict[str, Any], target: str, dtype: str, blocks: Mapping[str, tuple[int, int]]
) -> Resources:
    types = signature(kernel, constants, dtype, blocks)
    aligned = {name for name, of in types.items() if of.startswith("*")}
    if all(constants.get(width, 16) % 16 == 0 for width in ("D", "E", "K", "V")):
        aligned |= _STRIDES & set(types)
    compiled, said = compile_kernel(kernel, types, constants, frozenset(aligned), target)
    registers, spills, scratch = _amd(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _nvidia(said)
    return Resources(
        kernel=kernel.__name__,
        target=target,
        dtype=dtype,
        constants=tuple(sorted((name, int(value)) for name, value in constants.items() if not isinstance(value, str))),
        registers=registers,
        shared=compiled.metadata.shared,
        spills=spills,
        scratch=scratch,
        warps=compiled.metadata.num_warps,
        stages=constants["num_stages"],
    )


def _nvidia(log: str) -> tuple[int, int, int]:
    """Registers, spilled bytes and stack of a thread, as the assembler that Triton brings along says."""
    registers, frame, stores = (
        int(_only(pattern, log))
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill stores")
    )
    return registers, stores, frame


def _amd(assembly: str) -> tuple[int, int, int]:
    """Vector registers, spilled ones and private bytes, from the kernel's metadata."""
    registers, spills, scratch = (
        int(_only(rf"\.{key}:\s+(\d+)", assembly)) for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    )
    return registers, spills, scratch


def _only(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern} occurs {len(found)} times"
    return str(found[0])


def main() -> None:
    """`python -m attnc.codegen.triton.compile FILE TARGET DTYPE`: one line a kernel."""
    file, target, dtype = sys.argv[1:]
    for resources in compile_ahead(Path(file).read_text(encoding="utf-8"), target, dtype):
        sys.stdout.write(f"{resources}\n")


if __name__ == "__main__":
    main()
