"""Emitted kernels of fast weights as text, who is refused them, and what they use when compiled ahead."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fast_cases import FORMS

from attnc.codegen.triton.emit import functions_of
from attnc.codegen.triton.fast import emit_fast, files, skeleton_of
from attnc.codegen.triton.fast_blocks import blocks
from attnc.codegen.verify.net_cases import Case, expected, inputs, run, settled
from attnc.codegen.verify.net_roundings import Draws, Expected, tf32
from attnc.compiler import check_path, fast_providers, graph, passes
from attnc.compiler.cost import Workload
from attnc.compiler.device import device
from attnc.compiler.families import FastWeights
from attnc.compiler.fast_providers import unkept
from attnc.compiler.plan import choose
from attnc.runtime.fast_torch import torch_teach

TEXTS = {f"{name} {part}": text for name, form in FORMS.items() for part, text in files(form).items()}


@pytest.mark.parametrize("name", TEXTS)
def test_an_emitted_file_stands_alone(name: str) -> None:
    """It parses, imports torch and triton alone, calls only what it defines, and is the same twice."""
    text, (form, part) = TEXTS[name], name.split()
    assert text == files(FORMS[form])[part]
    tree = ast.parse(text)
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["torch", "triton", "triton.language"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    given = {"Launches", "constants", "enumerate", "len", "max", "min", "range", "reversed", "set", "sum", "tuple", "zip"}
    assert called <= {*functions_of(text), *given}, called
    assert max(map(len, text.splitlines())) <= 128


def test_only_weights_that_keep_their_norms_have_lines_for_them() -> None:
    """So others have the text that a GPU may have compared before there were any."""
    for name in ("linear", "titans"):
        text, kept = (emit_fast(replace(FORMS[name], weight_norm=keeps)) for keeps in (False, True))
        assert "WEIGHT_NORM" not in text
        assert not {"share", "shared", "met"} & functions_of(text).keys()
        own = iter(kept.splitlines())
        extra = [line for line in text.splitlines() if line.strip() not in map(str.strip, own)]
        assert not extra, extra  # all of it stands there too, in its order


def test_products_can_be_rounded_otherwise() -> None:
    assert "PRODUCTS = {2: 'bf16', 4: 'ieee'}" in emit_fast(FORMS["titans"], "bf16")


@pytest.mark.parametrize(("name", "chunk"), [("linear", 100), ("ttt_linear", 64), ("titans", 64)])
def test_drawn_rates_settle_at_any_size(name: str, chunk: int) -> None:
    """At the widths and chunks that a GPU compares; others do not, where no layer norm holds them."""
    form = replace(FORMS[name], key_width=64, value_width=64, hidden=FORMS[name].hidden and 256)
    case = Case(form, (450,), (5,), chunk, 1)
    assert expected(case).expected(0).want
    if not form.norm:
        given = inputs(case)
        given["lr"] *= 40
        with pytest.raises(AssertionError, match="rates that settle"):
            settled(case, run(case, torch_teach, given, torch.float64))


def test_operands_are_rounded_to_the_nearest_number_of_tf32() -> None:
    x = torch.tensor([1 + 2.0**-11 + 2.0**-20, 1 + 2.0**-11 - 2.0**-20, -3e-5, 7e19])
    assert torch.equal(tf32(x)[:2], torch.tensor([1 + 2.0**-10, 1.0]))
    bits = (x.view(torch.int32) + 0x1000) & -0x2000  # as kernels round
    assert torch.equal(tf32(x), bits.view(torch.float32))


def test_errors_that_are_too_large_are_judged_by_all_draws() -> None:
    """Of both sides; the first draw alone where it is right."""
    zero = {"o": torch.zeros(1, dtype=torch.float64)}
    draws, asked = Draws(lambda draw: Expected(draw, zero, {"o": 1.0})), []

    def by(*errors: float) -> tuple[float, float]:
        asked.clear()
        return draws.compared(lambda draw: asked.append(draw) or {"o": torch.tensor([errors[draw]])})["o"]

    assert by(1.0) == (1.0, 1.0)
    assert by(2.0, 1.0, 1.0) == (pytest.approx(2**0.5), 1.0)
    assert asked == [0, 0, 1, 2]
    assert by(float("nan"), 1.0, 1.0)[0] != 1.0


def test_who_has_no_kernels_is_told_why() -> None:
    reasons = {
        "no kernels of gated nets": FastWeights(gated=True, hidden=64),
        "generated kernels take nets of up to 2 maps": FastWeights(depth=3, hidden=64),
        "no kernels of errors after decay": FastWeights(decay="token", after_decay=True),
        "generated kernels take widths of up to 128": FastWeights(key_width=129),
        "generated kernels take widths of up to 64 with a norm": FastWeights(norm=True, value_width=65),
    }
    assert {unkept(form): form for form in reasons.values()} == reasons
    for form in (FastWeights(key_width=128, value_width=128), FastWeights(depth=2, hidden=512, key_width=128, norm=True)):
        assert unkept(form) is None
        assert blocks(skeleton_of(form), form)


@pytest.mark.triton
def test_compiled_ahead_little_spills() -> None:
    """Small nets: what wide ones use is said in docs/architecture.md."""
    from attnc.codegen.triton.compile import SHARED_LIMIT, compile_ahead

    for used in compile_ahead(emit_fast(replace(FORMS["titans"], key_width=16, value_width=16)), "sm_90", "fp32"):
        assert used.spills <= 16, used
        assert used.shared <= SHARED_LIMIT["sm_90"], used


SPECS = Path(__file__).parent.parent / "specs"
NETS = ("titans-lmm", "titans-mac", "titans-mag", "titans-mal", "ttt-linear", "ttt-mlp", "allmem")


@pytest.mark.parametrize("name", NETS)
def test_plans_take_the_kernels_once_a_gpu_has_compared_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What remains to be done then is to say so: `COMPARED`. Gated nets go from chunk to chunk by plain PyTorch."""
    layers = passes.run(graph.build(check_path(SPECS / f"{name}.attn")))
    load = Workload(batch=1, length=8192, width=2)

    def chosen() -> dict[str, str]:
        found = choose(layers, device("h100"), load).choices
        return {choice.phase: choice.provider for choice in found if choice.node.endswith("/memory")}

    assert set(chosen().values()) == {"torch"}
    monkeypatch.setattr(fast_providers, "COMPARED", True)
    chunks = "torch" if name == "allmem" else "triton"
    assert chosen() == {"train": chunks, "prefill": chunks, "decode": "triton"}
