"""What the table of known wrong-code cases says, tried on this GPU: products of integers that must come out exact."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from attnc.codegen.triton.known_bugs import Candidate, known
from attnc.codegen.triton.versions import VERSION

PROGRAMS = 264
TURNS = 6
DTYPES = (torch.bfloat16, torch.float16)


@triton.jit
def register_operand(p, v, out, TURNS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over turns of (p + 1) @ v: the first operand is made in registers, as the weights of an attention are."""
    program = tl.program_id(0)
    row, key, column = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for turn in tl.range(0, TURNS):
        place = program * TURNS + turn
        number = tl.load(p + (place * ROWS + row[:, None]) * KEYS + key[None, :])
        value = tl.load(v + (place * KEYS + key[:, None]) * WIDTH + column[None, :])
        acc = tl.dot((number.to(tl.float32) + 1.0).to(value.dtype), value, acc)
    tl.store(out + (program * ROWS + row[:, None]) * WIDTH + column[None, :], acc)


@triton.jit
def turned(a, b, c, out, SIZE: tl.constexpr, RESULT: tl.constexpr):
    """(a b)^T c, with the product turned (RESULT), or formed as b^T a^T from the start."""
    program = tl.program_id(0)
    one, other = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    there = program * SIZE * SIZE + one * SIZE + other
    first, second, third = tl.load(a + there), tl.load(b + there), tl.load(c + there)
    if RESULT:
        product = tl.trans(tl.dot(first, second).to(third.dtype))
    else:
        product = tl.dot(tl.trans(second), tl.trans(first)).to(third.dtype)
    tl.store(out + there, tl.dot(product, third))


def integers(device: str, dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).to(device, dtype)


def check_register_operand(device: str, dtype: torch.dtype, keys: int, width: int, warps: int, programs: int) -> None:
    p, v = integers(device, dtype, programs * TURNS, 128, keys), integers(device, dtype, programs * TURNS, keys, width, seed=1)
    out = torch.full((programs, 128, width), float("nan"), device=device)
    register_operand[(programs,)](p, v, out, TURNS, 128, keys, width, num_warps=warps, num_stages=3)
    want = torch.bmm(p.float() + 1, v.float()).view(programs, TURNS, 128, width).sum(1)
    assert torch.equal(out, want)


def check_turned(device: str, dtype: torch.dtype, size: int, result: bool, programs: int) -> None:
    a, b, c = (integers(device, dtype, programs, size, size, seed=seed) for seed in range(3))
    out = torch.full((programs, size, size), float("nan"), device=device)
    turned[(programs,)](a, b, c, out, size, result, num_warps=4)
    product = torch.bmm(a.float(), b.float())
    assert product.abs().max() <= 256, "held exactly by bfloat16"
    assert torch.equal(out, torch.bmm(product.transpose(1, 2), c.float()))


@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize(("keys", "width"), [(32, 64), (64, 64), (64, 128), (128, 128)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_register_operand_is_read_before_it_is_reused(dtype: torch.dtype, keys: int, width: int, warps: int) -> None:
    check_register_operand("cuda", dtype, keys, width, warps, PROGRAMS)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_transposed_product_formed_directly_is_exact(dtype: torch.dtype, size: int) -> None:
    """What the table says to do instead; the case itself must be right wherever the table does not name it."""
    check_turned("cuda", dtype, size, False, PROGRAMS)
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if not known(Candidate(frozenset({"dot_of_transposed_result"})), VERSION, architecture):
        check_turned("cuda", dtype, size, True, PROGRAMS)
