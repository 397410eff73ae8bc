"""The emitted softmax kernels on a GPU: those with every hole, and the shipped specs', over dtypes, shapes and caches."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from kernel_cases import KERNELS, check, check_gradients
from test_table import STATIC

from attnc.cli.verified import digests
from attnc.codegen import kernels
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.verify.cases import FULL, Case, Inputs, Union, build, poisoned
from attnc.codegen.verify.dense import reference, torch_own
from attnc.codegen.verify.gradients import gradients, outer_gradients
from attnc.codegen.verify.judge import error
from attnc.compiler import check_path, passes
from attnc.compiler import graph as graphs
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.launch import Kernels

TOP = Path(__file__).parents[2]
SKELETONS = FAMILIES["softmax"]
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Record = Callable[..., None]
Spot = tuple[int, int]


def shipped() -> dict[Softmax, str]:
    """The kernels that the shipped specs' layers run on, at their full widths, each by the first spec that has it."""
    found: dict[Softmax, str] = {}
    for name in (*STATIC, "infiniretri"):  # its driver is not built, its layers are
        spec = check_path(TOP / "specs" / f"{name}.attn")
        for _, node in passes.run(graphs.build(spec)).network.nodes(data="node"):
            kernel = kernels.family(node, spec.model) if isinstance(node, graphs.Mix) else None
            if kernel is not None and kernel.exponent is None:
                found.setdefault(kernel, f"{name}.attn:{len(found)}")
    return found


def texts() -> dict[str, str]:
    """Every kernel of KERNELS and of the shipped specs, by its skeleton and name."""
    every = shipped() | {kernel: name for name, kernel in KERNELS.items()}
    return {f"{skeleton}-{name}": emit(skeleton, kernel) for kernel, name in every.items() for skeleton in SKELETONS}


TEXTS = texts()


@functools.cache
def waiting() -> frozenset[str]:
    """The emitted kernels that no GPU of this architecture has compared yet."""
    architecture = module(next(iter(TEXTS.values()))).architecture(torch.device("cuda"))
    known = digests(TOP / "docs" / "gpu.json", architecture)
    return frozenset(name for name, text in TEXTS.items() if kernels.digest(text, architecture) not in known)


def turn(item: Any) -> tuple[bool, bool, int]:
    """Kernels without a row first; of these the shipped specs', in bfloat16, before all others."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    name = params.get("name", "")
    waits = not waiting().isdisjoint((name, *(f"{skeleton}-{name}" for skeleton in SKELETONS[2:])))
    return not waits, name.partition("-")[2] in KERNELS or name in KERNELS, DTYPES.index(params.get("dtype", DTYPES[0]))


@functools.cache
def module(text: str) -> ModuleType:
    return load(text, FOLDER, "emitted_" + hashlib.sha256(text.encode()).hexdigest())


def kernel_of(emitted: ModuleType) -> Softmax:
    """What an emitted file of a forward pass was made for, read from its constants."""
    nears, strides, powers, causal = emitted.FORM
    return Softmax(
        nears, strides, powers, causal, emitted.HEAD_WIDTH, emitted.VALUE_WIDTH, emitted.GROUP, emitted.CAP, emitted.SINK_LOGIT
    )


def unions(kernel: Softmax) -> tuple[Union, ...]:
    """Heads of every sort that the kernel can serve, in one launch."""
    near = [(FULL,), ((1, 0, 127, 0),), ((64, 0, 192, 0),), ((256, 64, 0, 0),)] if kernel.nears else [()]
    heads = [Union(nears=part) for part in near]
    heads += [Union(sink=70, nears=part) for part in near[1:2]]
    heads += [Union(nears=((1, 0, 31, 0), (128, 0, 0, 128))[: kernel.nears])] if kernel.nears else []
    heads += [Union(strides=(n,)) for n in (8, 333)] if kernel.strides else []
    heads += [Union(sink=3, nears=near[1] if kernel.nears else (), strides=(512,))] if kernel.strides else []
    heads += [Union(powers=(n,)) for n in (16, 100)] if kernel.powers else []
    heads += [Union(strides=(300,), powers=(64,))] if kernel.strides and kernel.powers else []
    return tuple(heads) or (Union(sink=40),)


def attend(text: str, inputs: Inputs, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with poisoned():
        o, lse = module(text).attend(*inputs.arguments, **options)
    torch.cuda.synchronize()
    return o, lse


CONSTANTS = ("FORM", "HEAD_WIDTH", "VALUE_WIDTH", "GROUP", "CAP", "SINK_LOGIT")
PREFILLS, DECODES, QUERIES, KEYS = ([name for name in TEXTS if name.startswith(f"{of}-")] for of in SKELETONS)
FORWARD = [*PREFILLS, *DECODES]


def about(name: str, kernel: Softmax, dtype: torch.dtype) -> tuple[Any, ...]:
    """What a row of the record says of an emitted kernel."""
    form = (kernel.nears, kernel.strides, kernel.powers, kernel.causal)
    values = (form, kernel.head_width, kernel.value_width, kernel.group, kernel.cap, kernel.sink_logit)
    digest = kernels.digest(TEXTS[name], module(TEXTS[name]).architecture(torch.device("cuda")))
    return name.partition("-")[0], digest, dict(zip(CONSTANTS, values, strict=True)), dtype


def compare(name: str, case: Case, record: Record, **options: int) -> None:
    row = about(name, case.kernel, case.dtype)
    record(*row)
    inputs = build(case)
    record(*row, check(inputs, *attend(TEXTS[name], inputs, **options)))


def case_of(name: str, dtype: torch.dtype, sizes: tuple[int, ...], pasts: tuple[int, ...], **rest: Any) -> Case:
    kernel = kernel_of(module(TEXTS[name]))
    return Case(kernel, unions(kernel), sizes, pasts, dtype=dtype, device="cuda", **rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PREFILLS)
def test_prefill_of_sequences_of_many_lengths(name: str, dtype: torch.dtype, record: Record) -> None:
    compare(name, case_of(name, dtype, (1, 0, 127, 129, 700, 1025), (0,) * 6), record)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PREFILLS)
def test_prefill_behind_a_cache(name: str, dtype: torch.dtype, record: Record) -> None:
    """What a chunk sees of a cache with rings, and what it sees of itself."""
    behind = case_of(name, dtype, (300, 17, 65), (1000, 0, 4000))
    compare(name, behind, record)
    rings = tuple((70, 400) if index % 2 else None for index in range(len(behind.unions)))
    compare(name, replace(behind, cache=True, written=False, keeps=rings), record)


@pytest.mark.parametrize("length", [4096, 16384])
@pytest.mark.parametrize("name", [name for name in PREFILLS if any(part in name for part in ("mixed", "far"))])
def test_prefill_of_a_long_text(name: str, length: int, record: Record) -> None:
    compare(name, case_of(name, torch.bfloat16, (length - 3,), (0,)), record)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DECODES)
def test_decode(name: str, dtype: torch.dtype, record: Record) -> None:
    for new in (1, 5, 16):
        case = case_of(name, dtype, (new, 1, 0, max(1, new - 1)), (0, 4100, 9, 777), cache=True)
        compare(name, case, record)
        rings = tuple((70, 300) if index % 2 else None for index in range(len(case.unions)))
        compare(name, replace(case, keeps=rings), record)
        compare(name, replace(case, keeps=rings), record, splits=0)  # by a list


@pytest.mark.parametrize("name", DECODES)
def test_decode_of_a_long_text(name: str, record: Record) -> None:
    compare(name, case_of(name, torch.bfloat16, (1, 1), (16384, 12001), cache=True), record)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name.partition("-")[2] for name in PREFILLS])
def test_gradients(name: str, dtype: torch.dtype, record: Record) -> None:
    """Sequences of many lengths; every kernel of a launch, through autograd, twice: the same bits."""
    files = [f"{skeleton}-{name}" for skeleton in SKELETONS]
    launch = Kernels.of(*(module(TEXTS[file]) for file in files))
    case = case_of(files[0], dtype, (1, 0, 129, 700), (0,) * 4)
    rows = [about(file, case.kernel, dtype) for file in files[2:]]
    for row in rows:
        record(*row)
    inputs = build(case)
    outer = outer_gradients(inputs)
    first, second = (gradients(launch, inputs, *outer) for _ in range(2))
    errors = check_gradients(inputs, first, *outer)
    assert all(torch.equal(first[key], second[key]) for key in first)
    record(*rows[0], errors["q"])
    record(*rows[1], max(errors["k"], errors["v"]))


@pytest.mark.parametrize(
    "name", [name.partition("-")[2] for name in PREFILLS if any(part in name for part in ("mixed", "far"))]
)
def test_gradients_of_a_long_text(name: str, record: Record) -> None:
    """Keys far away, and first keys that programs share."""
    files = [f"{skeleton}-{name}" for skeleton in SKELETONS]
    case = case_of(files[0], torch.bfloat16, (5003,), (0,))
    inputs = build(case)
    outer = outer_gradients(inputs)
    found = gradients(Kernels.of(*(module(TEXTS[file]) for file in files)), inputs, *outer)
    errors = check_gradients(inputs, found, *outer)
    record(*about(files[2], case.kernel, torch.bfloat16), errors["q"])
    record(*about(files[3], case.kernel, torch.bfloat16), max(errors["k"], errors["v"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in FORWARD if name.endswith(("mixed", "wide"))])
def test_a_mean_of_integers_is_exact(name: str, dtype: torch.dtype) -> None:
    """Equal weights over 64 keys: products and sums of small integers, of which none is rounded."""
    heads = (Union(nears=((1, 0, 63, 0),)), Union(nears=((64, 0, 0, 0),)))
    case = whole(name, dtype, heads, (5, 700), (1500, 0), integers=True, magnitude=0.0)
    inputs = build(case)
    o, lse = attend(TEXTS[name], inputs, **({"splits": 1} if case.cache else {}))  # joining parts takes logarithms
    check(inputs, o, lse)
    full = reference(inputs)[1].exp().round() == 64
    assert full.any()
    assert lse[full].unique().numel() == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in FORWARD if name.endswith(("mixed", "wide"))])
def test_a_key_that_is_found_returns_its_value_exactly(name: str, dtype: torch.dtype) -> None:
    """Keys of +1 and -1; each query is many times one key that it sees, so that no other has any weight."""
    heads = (Union(nears=(FULL,)), Union(sink=9, nears=((1, 0, 99, 0),)))
    inputs = build(whole(name, dtype, heads, (7, 900), (1300, 0), found=True))
    check(inputs, *attend(TEXTS[name], inputs))


def whole(name: str, dtype: torch.dtype, heads: tuple[Union, ...], few: Spot, many: Spot, **rest: Any) -> Case:
    """One sequence of exact numbers: a decode kernel's (new tokens, past), or a prefill kernel's."""
    decodes = name in DECODES
    size, past = few if decodes else many
    kernel = kernel_of(module(TEXTS[name]))
    return Case(kernel, heads, (size,), (past,), dtype=dtype, device="cuda", cache=decodes, **rest)


def test_no_kernel_is_compiled_again_for_other_lengths() -> None:
    compiled: list[str] = []
    for name in ("softmax_prefill-mixed", "softmax_decode-mixed"):
        decodes = name in DECODES
        shapes = (
            [((3,), (900,)), ((4, 3), (16, 4000)), ((3, 4, 4), (1, 2, 33))] if decodes else [((64,), (0,)), ((1, 777), (0, 3))]
        )
        for number, (sizes, pasts) in enumerate(shapes):
            if number == 1:
                triton.knobs.runtime.jit_post_compile_hook = lambda **about: compiled.append(about["repr"])
            attend(
                TEXTS[name],
                build(case_of(name, torch.bfloat16, sizes, pasts, cache=decodes)),
                **({"splits": 4} if decodes else {}),
            )
        triton.knobs.runtime.jit_post_compile_hook = None
    assert compiled == []


@pytest.mark.parametrize("splits", [None, 0])
def test_a_captured_decode_stays_right_while_the_cache_grows(splits: int | None) -> None:
    name = "softmax_decode-mixed"
    case = case_of(name, torch.bfloat16, (1, 1), (2000, 3), cache=True)
    inputs = build(case)
    emitted = module(TEXTS[name])
    emitted.attend(*inputs.arguments, splits=splits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse = emitted.attend(*inputs.arguments, splits=splits)
    for pasts in ((2000, 3), (1234, 2), (7, 0)):
        inputs.batch.past.copy_(torch.tensor(pasts))
        inputs.part.stored.copy_(torch.tensor(pasts) + 1)
        graph.replay()
        torch.cuda.synchronize()
        shorter = replace(
            inputs,
            case=replace(case, pasts=pasts),
            keys=[key[: past + 1] for key, past in zip(inputs.keys, pasts, strict=True)],
            values=[value[: past + 1] for value, past in zip(inputs.values, pasts, strict=True)],
        )
        want, want_lse = emitted.attend(*shorter.arguments)
        assert torch.equal(o, want)
        assert torch.equal(lse, want_lse)
        assert error(o, reference(shorter)[0]) <= 1.5 * error(torch_own(shorter)[0], reference(shorter)[0])
