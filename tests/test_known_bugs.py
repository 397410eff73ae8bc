"""Known wrong-code cases of Triton: each is found in a kernel's real text, refused by `emit`, and met by no emitted kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_cases import KERNELS

from attnc.codegen.triton import emit as emitting
from attnc.codegen.triton.blocks import blocks
from attnc.codegen.triton.emit import emit, functions_of
from attnc.codegen.triton.known_bugs import BUGS, SUPPORTED, WATCHED, Candidate, features_of, known, refusals
from attnc.compiler.families import FAMILIES, Softmax

NAMES = FAMILIES["softmax"]
KERNEL = Softmax(1, head_width=64, value_width=64)
BY_NAME = {bug.name: bug for bug in BUGS}

MEETING = {
    "dot of a transposed dot result": """
@triton.jit
def meets(q, k, v, out, scale, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    product = tl.dot(tl.load(q + at), tl.load(k + at))
    weight = tl.exp2(product * scale)
    weight = tl.where(weight > 1.0, weight, 0.0).to(tl.bfloat16)
    tl.store(out + at, tl.dot(tl.trans(weight), tl.load(v + at)))
""",
    "warp specialisation of a loop": """
@triton.jit
def meets(q, out, count, SIZE: tl.constexpr):
    acc = tl.zeros([SIZE], tl.float32)
    for step in tl.range(0, count, warp_specialize=True):
        acc += tl.load(q + step * SIZE + tl.arange(0, SIZE))
    tl.store(out + tl.arange(0, SIZE), acc)
""",
    "block pointers": """
@triton.jit
def meets(q, out, rows, SIZE: tl.constexpr):
    there = tl.make_block_ptr(q, (rows, SIZE), (SIZE, 1), (0, 0), (SIZE, SIZE), (1, 0))
    tl.store(out + tl.arange(0, SIZE), tl.sum(tl.load(there), 0))
""",
    "triangular solve with four warps": 'CONSTRUCTS = ("triangular_solve_gradient",)\n',
}
"""What meets each row, as a kernel would have it."""

NEAR = {
    "dot of a transposed dot result": MEETING["dot of a transposed dot result"].replace(
        "tl.dot(tl.trans(weight), tl.load(v + at))", "tl.dot(tl.trans(tl.load(k + at)), weight)"
    ),
    "warp specialisation of a loop": MEETING["warp specialisation of a loop"].replace("ize=True", "ize=False"),
    "block pointers": MEETING["block pointers"].replace("tl.make_block_ptr", "tl.make_tensor_descriptor"),
    "triangular solve with four warps": 'CONSTRUCTS = ("another",)\n',
}
"""What looks alike and is harmless."""

TWO_WARPS = {("sm_90", 2): (64, 64, 2, 3)}
FOUR_WARPS = {("sm_90", 2): (64, 64, 4, 3)}


def test_every_row_has_a_test() -> None:
    assert set(MEETING) == set(NEAR) == set(BY_NAME)
    assert len(BY_NAME) == len(BUGS)
    assert all(bug.evidence and bug.instead and bug.since < bug.until for bug in BUGS)
    assert all(name and evidence for name, evidence in WATCHED)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_kernel_that_meets_a_row_is_refused_and_one_that_does_not_is_not(name: str) -> None:
    assert refusals(MEETING[name], FOUR_WARPS) == (name,)
    assert refusals(NEAR[name], FOUR_WARPS) == ()


@pytest.mark.parametrize("name", BY_NAME)
def test_emit_refuses_a_skeleton_that_meets_a_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skeleton with the construct in it, filled as any other; at this width sm_90 has blocks of 64 rows and four warps."""
    assert blocks("softmax_prefill", 64)["sm_90", 2][::2] == (64, 4)
    skeleton = (emitting.SKELETONS / "softmax_prefill.py").read_text("utf-8")
    for which, text in (("meets", MEETING), ("near", NEAR)):
        (tmp_path / which).mkdir()
        (tmp_path / which / "softmax_prefill.py").write_text(f"{skeleton}\n{text[name]}", "utf-8")
    monkeypatch.setattr(emitting, "SKELETONS", tmp_path / "meets")
    with pytest.raises(AssertionError, match=f"softmax_prefill would meet {name}"):
        emit("softmax_prefill", KERNEL)
    monkeypatch.setattr(emitting, "SKELETONS", tmp_path / "near")
    assert "tl.dot" in emit("softmax_prefill", KERNEL)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_no_emitted_kernel_meets_a_row(kernel: Softmax) -> None:
    for skeleton in NAMES:
        text = emit(skeleton, kernel)
        assert features_of(text) == frozenset()
        assert refusals(text, blocks(skeleton, max(kernel.head_width, kernel.value_width))) == ()


@pytest.mark.parametrize("skeleton", NAMES)
def test_features_are_found_in_the_real_text(skeleton: str) -> None:
    """An emitted kernel whose products are turned by hand: the look-alikes of real kernels are told from the case."""
    text = emit(skeleton, KERNEL)
    assert "tl.dot(" in text
    name = {"softmax_backward_queries": "change", "softmax_backward_keys": "change"}.get(skeleton, "weight")
    kernels = [body for body in functions_of(text).values() if f"{name} = " in body and "tl.dot(" in body]
    assert kernels, "the name of what a product becomes"
    wrong = text.replace(kernels[0], f"{kernels[0]}\n    tl.store(q, tl.dot(tl.trans({name}), {name}))")
    assert features_of(wrong) == {"dot_of_transposed_result"}
    right = text.replace(kernels[0], f"{kernels[0]}\n    tl.store(q, tl.dot({name}, tl.trans({name})))")
    assert features_of(right) == frozenset()


@pytest.mark.parametrize(
    ("turned", "found"),
    [
        ("tl.dot(tl.trans(p), v)", True),
        ("tl.dot(p.T, v)", True),
        ("tl.dot(p.trans(), v)", True),
        ("tl.dot(tl.permute(p, (1, 0)).to(v.dtype), v, acc)", True),
        ("tl.dot(tl.trans(tl.dot(q, k)), v)", True),
        ("tl.dot(tl.trans(tl.load(q + p)), v)", False),
        ("tl.dot(tl.trans(q), v)", False),
        ("tl.dot(v, tl.trans(p))", False),
    ],
)
def test_which_products_are_the_case(turned: str, found: bool) -> None:
    body = f"def kernel(q, k, v):\n    s = tl.dot(q, k)\n    p, best = step(s, 1.0)\n    p *= 2\n    o = {turned}\n"
    assert ("dot_of_transposed_result" in features_of(body)) == found


def test_a_row_holds_for_its_versions_architectures_and_shapes() -> None:
    wrong = Candidate(features_of(MEETING["dot of a transposed dot result"]))
    assert [bug.name for bug in known(wrong, (3, 6, 0), "sm_90")] == ["dot of a transposed dot result"]
    assert known(wrong, (3, 7, 1), "sm_90") == ()
    assert known(wrong, (3, 6, 0), "sm_80") == ()
    solve = MEETING["triangular solve with four warps"]
    assert refusals(solve, FOUR_WARPS)
    assert refusals(solve, TWO_WARPS) == ()
    assert refusals(solve, {("sm_80", 2): (64, 64, 4, 3)}) == ()
    assert refusals(solve, {("sm_90", 2): (32, 64, 4, 3)}) == ()
    assert refusals(MEETING["block pointers"], {("gfx942", 2): (64, 64, 4, 3)})
    assert SUPPORTED[0] < SUPPORTED[1]
