"""What differs between the Triton versions that are supported, 3.6 to 3.9, kept in one place."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

VERSION: tuple[int, ...] = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])
INTERPRETS: bool = triton.knobs.runtime.interpret
"""Whether kernels made in this process run in Triton's interpreter (TRITON_INTERPRET=1), where nothing can be compiled."""


OPTIONS = frozenset({"num_warps", "num_stages", "enable_fp_fusion"})
"""Compile-time arguments that are Triton's own. Fusing a product and a sum is named, as its default changes with 3.10."""


def gpu_target(target: str) -> Any:
    """Triton's name for `sm_80`, `sm_90`, `sm_100` or `gfx942`."""
    if target.startswith("sm_"):
        return GPUTarget("cuda", int(target[3:]), 32)
    return GPUTarget("hip", target, 64)


def descriptor(dtype: str, rows: int, columns: int) -> str:
    """The type of what tells a copy of [rows, 1, columns] two-byte elements where a tensor lies, in lines of 128 bytes."""
    layout = "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)"
    return f"tensordesc<{dtype}[{rows}, 1, {columns}],{layout}>"


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], aligned: frozenset[str], target: str
) -> tuple[Any, str]:
    """Compile a jitted function without a GPU: Triton's kernel, and what NVIDIA's assembler says of it, where it is one.
    `aligned` names the arguments that are multiples of 16, `constants` also holds the OPTIONS.

    Triton's cache knows no such words, so the kernel is compiled again; that is quicker than to assemble it once more.
    """
    options = {name: value for name, value in constants.items() if name in OPTIONS}
    values = {name: value for name, value in constants.items() if name not in options}
    names = kernel.arg_names
    attributes = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in aligned}
    made = GluonASTSource if kernel.is_gluon() else ASTSource
    source = made(kernel, {**signature, **dict.fromkeys(values, "constexpr")}, values, attributes)
    compilation, nvidia = triton.knobs.compilation, triton.knobs.nvidia
    with compilation.scope(), nvidia.scope(), contextlib.redirect_stdout(io.StringIO()) as said:
        compilation.always_compile = nvidia.dump_ptxas_log = target.startswith("sm_")
        compiled = triton.compile(source, target=gpu_target(target), options=options)
    return compiled, said.getvalue()
