"""Libraries' attention functions on a GPU: right, differentiable, and the kernel that the plan names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_attention_flex import by_blocks

from attnc.codegen.verify.judge import COUNTED
from attnc.runtime.attention_fa4 import ARCHITECTURES, fa4_attention_lse
from attnc.runtime.attention_flex import flex_attention, flex_attention_lse
from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.batch import Batch
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near

FA4 = importlib.util.find_spec("flash_attn") is not None and importlib.util.find_spec("flash_attn.cute") is not None
WINDOWS = {
    "full": (HeadGroup(0, 3, near=(FULL,)),),
    "window": (HeadGroup(0, 3, near=(Near(back=200),)),),
    "heads": (HeadGroup(0, 0, near=(FULL,)), HeadGroup(1, 3, near=(Near(back=70),))),
}
OTHERS = {
    "sink": (HeadGroup(0, 3, sink=9, near=(Near(back=130),)),),
    "mixed": (HeadGroup(0, 0, near=(FULL,)), HeadGroup(1, 3, sink=64, near=(Near(back=130),))),
    "blocks": (HeadGroup(0, 3, near=(Near(align=100, back=100),)),),
    "strides": (HeadGroup(0, 1, near=(Near(back=5),), strides=(7,)), HeadGroup(2, 3, strides=(128,))),
    "powers": (HeadGroup(0, 3, powers=(128,)),),
}
DRAWS = 8
SIZES = {"even": [640, 640], "packed": [1, 129, 0, 700]}


def batch_of(sizes: list[int]) -> Batch:
    """Two equal rows, or packed sequences."""
    if len(set(sizes)) == 1:
        return Batch.of(torch.zeros(len(sizes), sizes[0], dtype=torch.int64, device="cuda"))[1]
    ends = [sum(sizes[:s]) for s in range(len(sizes) + 1)]
    return Batch.of(torch.zeros(1, ends[-1], dtype=torch.int64, device="cuda"), offsets=ends)[1]


def inputs_of(tokens: int, dtype: torch.dtype, width: int = 64, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v, a sink's logits and the outer gradient."""
    torch.manual_seed(seed)
    shapes = ((tokens, 8, width), (tokens, 4, width), (tokens, 4, width), (8,), (tokens, 8, width))
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]


def run(
    provider: Callable[..., Any], inputs: list[torch.Tensor], sizes: list[int], groups: Any, cap: Any, with_sink: bool
) -> Any:
    """o, lse and the gradients of q, k, v and the sink, through both o and lse."""
    q, k, v, sink, outer = inputs
    batch = batch_of(sizes)
    o, lse = provider(q, (batch.keys(k, v),), groups, Form.of(groups, True), batch, 0.125, cap, sink if with_sink else None)
    wanted = [q, k, v, *([sink] if with_sink else [])]
    loss = (o * outer).sum() + torch.where(lse > -1e30, lse, 0.0).sum()
    return [o, lse, *torch.autograd.grad(loss, wanted)]


def compare(provider: Callable[..., Any], dtype: torch.dtype, sizes: list[int], groups: Any, cap: Any, sink: bool) -> None:
    """As near to float64 as 1.5 times the formula of PyTorch's own operators in the same dtype.

    The libraries count in base 2: their log-sum-exp, the second result, is rounded three times more. Of few numbers, as a
    sink's gradients are, one draw of the formula says little: its worst of several counts.
    """

    def formula(*arguments: Any) -> Any:
        return flex_attention_lse(*arguments, using=by_blocks_here)

    def errors(results: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
        return [
            float((x.detach().double() - right)[torch.isfinite(right)].norm()) for x, right in zip(results, exact, strict=True)
        ]

    def drawn(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
        inputs = inputs_of(sum(sizes), dtype, seed=seed)
        exact = run(formula, [x.detach().double().requires_grad_() for x in inputs], sizes, groups, cap, sink)
        return inputs, exact, errors(run(formula, inputs, sizes, groups, cap, sink), exact)

    inputs, exact, plain = drawn(0)
    found = run(provider, inputs, sizes, groups, cap, sink)
    more = [drawn(seed)[2] for seed in range(1, DRAWS)] if sink else []
    for number, (one, right, error) in enumerate(zip(found, exact, errors(found, exact), strict=True)):
        there = torch.isfinite(right)
        assert torch.equal(torch.isfinite(one), there)
        few = right.numel() < COUNTED
        allowed = 1.5 * max([plain[number], *(draw[number] for draw in more if few)])
        allowed += 3 * 2.0**-24 * float(right[there].norm()) if number == 1 else 0.0
        assert error <= allowed, (number, error, allowed, right.shape)


def by_blocks_here(*arguments: Any, **options: Any) -> Any:
    """The stand-in makes its tensors on the GPU."""
    with torch.device("cuda"):
        return by_blocks(*arguments, **options)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("name", [*WINDOWS, *OTHERS])
def test_flex(name: str, sizes: list[int]) -> None:
    compare(flex_attention_lse, torch.bfloat16, sizes, (WINDOWS | OTHERS)[name], None, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_flex_with_a_cap_and_a_sink(dtype: torch.dtype) -> None:
    compare(flex_attention_lse, dtype, SIZES["packed"], OTHERS["mixed"], 5.0, True)


if FA4:

    @pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
    @pytest.mark.parametrize("cap", [None, 5.0])
    @pytest.mark.parametrize("sink", [False, True])
    @pytest.mark.parametrize("name", WINDOWS)
    def test_fa4(name: str, sink: bool, cap: float | None, sizes: list[int]) -> None:
        assert torch.cuda.get_device_capability() in ARCHITECTURES
        compare(fa4_attention_lse, torch.bfloat16, sizes, WINDOWS[name], cap, sink)


def test_flex_compiles_a_launch_for_the_first_length_and_once_for_all_others() -> None:
    import torch._dynamo.testing

    groups = (HeadGroup(0, 3, near=(Near(back=33),)),)
    counter = torch._dynamo.utils.counters["stats"]
    before = []
    for length in (256, 384, 400, 1000, 2048):
        q, k, v, *_ = (x.detach() for x in inputs_of(length, torch.bfloat16))
        batch = batch_of([length])
        flex_attention(q, (batch.keys(k, v),), groups, Form.of(groups, True), batch, 0.125)
        before.append(counter["unique_graphs"])
    assert before[-1] - before[1] <= 1, before


def kernels(provider: Callable[[], Any]) -> list[str]:
    """The names of the kernels of one call."""
    provider()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        provider()
        torch.cuda.synchronize()
    return [event.key.lower() for event in profile.key_averages()]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_on_pytorchs_flash_kernel(name: str, sizes: list[int]) -> None:
    """No mask is made; as near to float64 as the formula in bfloat16."""

    def without_lse(*arguments: Any) -> Any:
        o = torch_attention(*arguments)
        return o, torch.zeros(o.shape[:2], device="cuda", requires_grad=True)

    def formula(*arguments: Any) -> Any:
        o, lse = flex_attention_lse(*arguments, using=by_blocks_here)
        return o, 0.0 * torch.where(lse > -1e30, lse, 0.0)

    inputs = inputs_of(sum(sizes), torch.bfloat16)
    groups = WINDOWS[name]
    exact = run(formula, [x.detach().double().requires_grad_() for x in inputs], sizes, groups, None, False)
    plain = run(formula, inputs, sizes, groups, None, False)
    found = run(without_lse, inputs, sizes, groups, None, False)
    for one, other, right in zip(found, plain, exact, strict=True):
        assert (one.double() - right).norm() <= 1.5 * (other.double() - right).norm()
    if name == "window":
        q, k, v, *_ = inputs
        batch = batch_of(sizes)
        names = kernels(lambda: torch_attention(q, (batch.keys(k, v),), groups, Form.of(groups, True), batch, 0.125))
        assert any("flash" in name for name in names), names


@pytest.mark.parametrize("sizes", [[4096], [2048, 2048], [17, 3000, 1, 900]], ids=["one", "even", "packed"])
def test_plain_causal_launches_run_on_cudnn_or_flash(sizes: list[int]) -> None:
    """Forward and backward; the kernel's name says whose it is: what the plan says for equal sequences, flash for others."""
    q, k, v, _, outer = inputs_of(sum(sizes), torch.bfloat16, 128)
    groups = (HeadGroup(0, 3, near=(FULL,)),)
    batch = batch_of(sizes)
    form = Form.of(groups, True)

    def call() -> torch.Tensor:
        return torch_attention(q, (batch.keys(k, v),), groups, form, batch, 0.088)

    cudnn = torch.cuda.get_device_capability() in ((9, 0), (10, 0)) and len(set(sizes)) == 1
    wanted = "cudnn" if cudnn else "flash"
    for run_one in (call, lambda: torch.autograd.grad(call(), (q, k, v), outer)):
        names = kernels(run_one)
        assert any(wanted in name for name in names), names
        assert not any("softmax" in name or "fmha_cutlass" in name for name in names), names
