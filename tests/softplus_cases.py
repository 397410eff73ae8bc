"""Softplus launches of emitted kernels, and the verdicts on them as assertions."""

from __future__ import annotations

import functools
from pathlib import Path

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.verify.cases import Case, build
from attnc.codegen.verify.softplus import compare_softplus, expect_softplus
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.intervals import Form
from attnc.runtime.launch import Kernels
from attnc.runtime.operators import Functions, name_of
from attnc.runtime.softplus import SoftplusKernels

Sizes = dict[str, tuple[int, ...]]


def kernels(form: Softmax, folder: Path, blocks: Sizes) -> Kernels:
    """A kernel's four files; `blocks` by skeleton, or the tables'."""
    modules = [load(emit(name, form), folder, f"emitted_{name}_{abs(hash(form))}") for name in FAMILIES["softmax"]]
    if not blocks:
        return Kernels.of(*modules)
    entries = ("attend", "attend", "attend_backward_queries", "attend_backward_keys")
    functions = Functions(
        *(
            functools.partial(getattr(module, entry), blocks=blocks[name])
            for module, entry, name in zip(modules, entries, FAMILIES["softmax"], strict=True)
        )
    )
    name = "small_" + name_of([str(module.__file__) for module in modules])
    widths = (form.head_width, form.value_width, form.group)
    return Kernels(name, functions, Form(*modules[0].FORM), *widths, form.exponent)


def launch(form: Softmax, folder: Path, blocks: Sizes) -> SoftplusKernels:
    """Both kernels of a softplus launch."""
    return SoftplusKernels(kernels(form.masses, folder, blocks), kernels(form, folder, blocks))


def check_softplus(kernels: SoftplusKernels, case: Case, gradients: bool = True) -> dict[str, tuple[float, float]]:
    """The kernels' error and torch's, of the result and of every gradient."""
    inputs = build(case)
    expected = expect_softplus(inputs, gradients)
    verdicts = compare_softplus(kernels, inputs, expected, ("o", "q", "k", "v") if gradients else ("o",))
    assert not any(verdict.wrong for verdict in verdicts.values()), verdicts
    return {name: (verdict.error, verdict.torch_error) for name, verdict in verdicts.items()}
