"""The kernels in Gluon on a GPU of sm_90: right, the same bits every time, captured, and run by a model that asks for them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from filelock import FileLock
from kernel_cases import KERNELS, check
from test_verify import TEXT
from triton import knobs

import attnc
from attnc.codegen import kernels
from attnc.codegen.build import Options, build
from attnc.codegen.gluon.emit import PREFILL, emit
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.cases import Case, Inputs, Union, poisoned
from attnc.codegen.verify.cases import build as inputs_of
from attnc.codegen.verify.classes import sorts
from attnc.compiler import check_text
from attnc.compiler.families import Softmax

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="the kernels are for sm_90"
)
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
CONSTANTS = ("FORM", "HEAD_WIDTH", "VALUE_WIDTH", "GROUP", "CAP", "SINK_LOGIT")
DTYPES = (torch.bfloat16, torch.float16)
SERVED = {name: kernel for name, kernel in KERNELS.items() if kernel.head_width % 8 == kernel.value_width % 8 == 0}
SERVED |= {
    "keys_192": Softmax(1, head_width=192, value_width=128),
    "width_96": Softmax(1, head_width=96, value_width=96, group=2),
    "values_256": Softmax(1, head_width=64, value_width=256, sink_logit=True),
    "every_part": Softmax(2, 1, 1, head_width=128, value_width=128, group=4, sink_logit=True),
}
Record = Callable[..., None]


WARM = """
import sys
from pathlib import Path
import torch
from attnc.codegen.gluon.emit import emit
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.cases import Case, Union, build
from attnc.compiler.families import Softmax
name, folder, kernel = sys.argv[1], Path(sys.argv[2]), eval(sys.argv[3])
module = load(emit(kernel), folder, f"gluon_{name}")
for dtype in (torch.bfloat16, torch.float16):
    for keeps in (None, ((3, 40),)):
        case = Case(kernel, (Union(),), (9,), (50,), dtype, keeps, cache=True, written=keeps is None, device="cuda")
        module.attend(*build(case).arguments)
torch.cuda.synchronize()
"""


@pytest.fixture(scope="module", autouse=True)
def compiled(request: pytest.FixtureRequest) -> None:
    """Every kernel that is asked for once, in processes of their own, as many at a time as COMPILERS says: compiled one after
    another they would take longer than all tests. Where several processes run tests, the first one compiles for all.
    """
    asked = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    names = tuple(name for name in SERVED if name in asked)
    texts = "".join(emit(SERVED[name]) for name in names)
    place = Path(knobs.cache.dir)
    place.mkdir(parents=True, exist_ok=True)
    done = place / f"attnc-gluon-{sha256(texts.encode()).hexdigest()[:16]}"
    with FileLock(f"{done}.lock"):
        if not done.exists():
            with ThreadPoolExecutor(int(os.environ.get("COMPILERS", "4"))) as pool:
                list(pool.map(warm, names))
            done.touch()


def warm(name: str) -> None:
    folder = FOLDER / f"warm_{name}"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", WARM, name, str(folder), repr(SERVED[name])], check=True, timeout=150)


@cache
def module(name: str) -> ModuleType:
    return load(emit(SERVED[name]), FOLDER, f"gluon_{name}")


def attend(name: str, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    with poisoned():
        o, lse = module(name).attend(*inputs.arguments)
    torch.cuda.synchronize()
    return o, lse


def compare(name: str, case: Case, record: Record) -> None:
    kernel = case.kernel
    form = (kernel.nears, kernel.strides, kernel.powers, kernel.causal)
    values = (form, kernel.head_width, kernel.value_width, kernel.group, kernel.cap, kernel.sink_logit)
    row: tuple[Any, ...] = (
        PREFILL,
        kernels.digest(emit(kernel), "sm_90"),
        dict(zip(CONSTANTS, values, strict=True)),
        case.dtype,
    )
    record(*row)
    inputs = inputs_of(case)
    record(*row, check(inputs, *attend(name, inputs)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_prefill(name: str, dtype: torch.dtype, record: Record) -> None:
    """Sequences of many lengths; behind a cache, which holds all keys or turns; a long text; heads that see nothing."""
    kernel = SERVED[name]
    heads = (*sorts(kernel, 64), Union())
    many = Case(kernel, heads, (1, 0, 127, 129, 700, 1025), (0,) * 6, dtype=dtype, device="cuda")
    behind = replace(many, sizes=(300, 17, 65), pasts=(1000, 0, 4000))
    rings = tuple((70, 400) if index % 2 else None for index in range(len(heads)))
    turning = replace(behind, cache=True, written=False, keeps=rings)
    for case in (many, behind, replace(behind, cache=True), turning, replace(many, sizes=(4093,), pasts=(0,))):
        compare(name, case, record)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mixed", "keys_192", "width_96"])
def test_what_nobody_rounds_is_exact(name: str, dtype: torch.dtype, record: Record) -> None:
    """A key that is found returns its value, at logits of thousands; a mean over a power of two of integers."""
    kernel, heads = SERVED[name], sorts(SERVED[name], 64)[:5]
    compare(name, Case(kernel, heads, (900,), (0,), dtype=dtype, device="cuda", found=True), record)
    compare(name, Case(kernel, heads, (700,), (0,), dtype=dtype, device="cuda", integers=True, magnitude=0.0), record)


@pytest.mark.parametrize("name", ["full", "mixed", "far", "cap", "every_part"])
def test_the_same_bits_every_time(name: str) -> None:
    """Two hundred launches of random shapes: parties that meet in another order would show."""
    draw = random.Random(name)
    for number in range(50):
        heads = tuple(draw.choices(sorts(SERVED[name], 64), k=draw.randint(1, 8)))
        sizes = tuple(draw.randint(1, draw.choice((300, 4000))) for _ in range(draw.randint(1, 5)))
        inputs = inputs_of(Case(SERVED[name], heads, sizes, (0,) * len(sizes), torch.bfloat16, device="cuda", seed=number))
        first = attend(name, inputs)
        for _ in range(3):
            assert all(map(torch.equal, first, attend(name, inputs))), (number, sizes, heads)


@pytest.mark.parametrize("name", SERVED)
def test_a_captured_launch_reads_what_lies_there_then(name: str) -> None:
    """Also after descriptors that were encoded for it have been thrown away."""
    inputs = inputs_of(Case(SERVED[name], sorts(SERVED[name], 64), (130, 300), (0, 0), torch.bfloat16, device="cuda"))
    attend(name, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse = module(name).attend(*inputs.arguments)
    inputs.q.mul_(2)
    o.fill_(float("nan"))
    module(name).ENCODED.clear()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, (o, lse), attend(name, inputs)))


def test_what_comes_to_lie_at_an_address_is_read() -> None:
    """Tensors of several shapes one after another in the same memory, so that descriptors meet addresses again."""
    storage = torch.empty(1 << 22, dtype=torch.bfloat16, device="cuda")
    for number, size in enumerate((300, 130, 300, 65, 130, 300)):
        inputs = inputs_of(
            Case(SERVED["full"], sorts(SERVED["full"], 64)[:2], (size,), (0,), torch.bfloat16, device="cuda", seed=number)
        )
        q = storage[: inputs.q.numel()].view(inputs.q.shape).copy_(inputs.q)
        check(inputs, *attend("full", replace(inputs, q=q)))


@pytest.mark.parametrize("name", ["full", "mixed"])
def test_other_blocks_give_what_the_chosen_ones_give(name: str) -> None:
    """Values pinned or not, results from registers, and tiles of three parties."""
    inputs = inputs_of(Case(SERVED[name], sorts(SERVED[name], 64), (1, 0, 700, 129), (0,) * 4, torch.bfloat16, device="cuda"))
    *row, pin, direct = module(name).BLOCKS["sm_90", 2]
    others: list[tuple[int, ...]] = [(*row, 1 - pin, direct), (*row, pin, 1 - direct)]
    if name == "full":
        others.append((192, *row[1:-1], 160, 0, 0))
    for other in others:
        with poisoned():
            found = module(name).attend(*inputs.arguments, blocks=other)
        check(inputs, *found)


def test_a_model_runs_on_it_where_it_is_asked_for(tmp_path: Path) -> None:
    """Gradients come from kernels in Gluon too, where the widths fit."""
    build(check_text(TEXT, "small.attn"), tmp_path / "small", Options(seed=0, device="h100", installed=("gluon",)))
    model = attnc.load(tmp_path / "small", device="cuda", dtype=torch.bfloat16).train()
    tokens = torch.randint(0, 16, (2, 150), device="cuda")
    found = {}
    for way in ("plan", "gluon", "triton"):
        model.use(way).zero_grad()
        model(tokens).logits.float().square().sum().backward()
        found[way] = torch.cat([weight.grad.flatten().float() for weight in model.parameters() if weight.grad is not None])
    assert torch.equal(found["plan"], found["gluon"])
    assert float((found["gluon"] - found["triton"]).norm() / found["triton"].norm()) < 2e-2
