"""How emitted kernels are launched: by what was compiled for arguments alike, which must be what Triton itself would choose.

No GPU is needed: Triton compiles for one, and a driver of ours notes each launch instead of making it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.verify.cases import Case, Inputs, Union, build
from attnc.compiler.families import Softmax

pytestmark = pytest.mark.triton
KERNEL = Softmax(1, head_width=16, value_width=16, group=2)
HEADS = (Union(nears=((1, 0, 9, 0),)),) * 3
Launch = tuple[Any, ...]


class Driver:
    """What Triton asks of a GPU; `launches` has what was compiled, the grid, and the arguments."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.launches: list[Launch] = []
        self.compiled: list[Any] = []
        self.target = GPUTarget("cuda", 90, 32)
        limits = {"max_shared_mem": 232_448}
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 32, 0, 1024), get_device_properties=lambda _: limits, unload_module=lambda _: None
        )

    def launcher_cls(self, source: Any, _metadata: Any) -> Any:
        self.compiled.append(source)
        number = len(self.compiled)

        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            if rest[4] is not None:
                rest[4](rest[3])  # a hook of whoever profiles launches
            arguments = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in rest[6:]]
            self.launches.append((number, (x, y, z), *arguments))

        return launch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    from triton.runtime import driver as drivers

    monkeypatch.setattr(drivers, "_active", Driver())
    return drivers.active


def inputs_of(kernel: Softmax = KERNEL, dtype: torch.dtype = torch.float16, tokens: int = 20, **rest: Any) -> Inputs:
    return build(Case(kernel, HEADS, (tokens,), (0 if tokens > 16 else 40,), dtype=dtype, cache=tokens <= 16, **rest))


def moved(x: torch.Tensor, by: int) -> torch.Tensor:
    """The same numbers, `by` elements further in their storage than its beginning."""
    return torch.empty(x.numel() + by, dtype=x.dtype)[by:].copy_(x.flatten()).view(x.shape)


def calls(tokens: int) -> dict[str, Inputs]:
    """Calls that Triton tells apart, and some that it does not."""
    plain = inputs_of(tokens=tokens)
    wide = torch.empty(tokens, 6, 24, dtype=plain.q.dtype)[..., :16].copy_(plain.q)
    few = inputs_of(tokens=tokens, seed=1)
    return {
        "plain": plain,
        "again": few,
        "float32": inputs_of(dtype=torch.float32, tokens=tokens),
        "odd strides of q": replace(plain, q=wide),
        "q not aligned": replace(plain, q=moved(plain.q, 1)),
        "k not aligned": replace(plain, part=replace(plain.part, k=moved(plain.part.k, 4))),
        "offsets not aligned": replace(plain, batch=replace(plain.batch, offsets=moved(plain.batch.offsets, 1))),
        "rows not aligned": replace(plain, rows=moved(plain.rows[0], 1)[None]),
        "rings": inputs_of(tokens=tokens, keeps=((3, 20),) * 3) if tokens <= 16 else plain,
        "one token": inputs_of(tokens=1) if tokens <= 16 else plain,
        "a long text": inputs_of(tokens=5000) if tokens > 16 else plain,
        "one sequence of one head": build(Case(KERNEL, HEADS[:1], (tokens,), (0,), dtype=torch.float16, cache=tokens <= 16)),
    }


def attend(module: ModuleType, inputs: Inputs) -> None:
    """The file's function, forwards or backwards, with results and gradients that are made anew."""
    o = torch.ones(*inputs.q.shape[:2], 16, dtype=inputs.q.dtype)
    sums = torch.zeros(inputs.q.shape[:2])
    *given, _ = inputs.arguments
    if hasattr(module, "attend"):
        module.attend(*inputs.arguments)
    elif hasattr(module, "attend_backward_queries"):
        module.attend_backward_queries(*given, o, sums, o, sums)
    else:
        module.attend_backward_keys(*given, sums, sums, o)


def launched(module: ModuleType, driver: Driver, inputs: Inputs) -> list[Launch]:
    """Which kernels were launched and how; results and partial ones lie elsewhere at every call."""
    driver.launches.clear()
    attend(module, inputs)
    passed = {x.data_ptr() for x in (inputs.q, inputs.part.k, inputs.part.v, inputs.rows, inputs.scale)}
    return [tuple(x for x in launch if not isinstance(x, int) or x < 2**40 or x in passed) for launch in driver.launches]


@pytest.mark.parametrize(
    ("skeleton", "tokens"),
    [("softmax_prefill", 20), ("softmax_decode", 5), ("softmax_backward_queries", 20), ("softmax_backward_keys", 20)],
)
def test_what_runs_at_once_is_what_triton_would_choose(skeleton: str, tokens: int, driver: Driver, tmp_path: Path) -> None:
    module = load(emit(skeleton, KERNEL), tmp_path, f"launched_{skeleton}")
    chosen = []
    for name, inputs in calls(tokens).items():
        known = dict(module.READY)
        module.READY.clear()
        want = launched(module, driver, inputs)
        module.READY.update(known)
        assert launched(module, driver, inputs) == want, name
        assert launched(module, driver, inputs) == want, name
        chosen.append(want[0][0])
    assert len(set(chosen)) >= 4, "the calls differ in what is compiled for them"
    assert 2 <= len(module.READY) <= 2 * len(chosen)


def calls_of(module: ModuleType, function: Callable[[], object]) -> int:
    """How many functions, Python's and C's, a file's text calls: a host's work for a launch, whatever else it does."""
    found = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal found
        caller = frame.f_back if event == "call" else frame
        found += event in ("call", "c_call") and caller is not None and caller.f_code.co_filename == module.__file__

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize(("skeleton", "tokens", "most"), [("softmax_prefill", 20, 14), ("softmax_decode", 5, 31)])
def test_a_launch_calls_few_functions_on_the_host(
    skeleton: str, tokens: int, most: int, driver: Driver, tmp_path: Path
) -> None:
    module = load(emit(skeleton, KERNEL), tmp_path, f"counted_{skeleton}")
    inputs = inputs_of(tokens=tokens)
    for _ in range(2):
        attend(module, inputs)
    arguments = inputs.arguments
    assert calls_of(module, lambda: module.attend(*arguments)) <= most


def test_tiles_have_as_many_programs_as_keep_a_gpu_busy(tmp_path: Path) -> None:
    module = load(emit("softmax_decode", KERNEL), tmp_path, "shared")
    gpu = torch.device("cuda")
    module.PROCESSORS[gpu] = 132
    one, many = (module.count_programs(gpu, sequences) for sequences in (1, 32))
    assert module.count_splits(one, 8, 2048) == 33
    assert module.count_splits(many, 256, 2048) == 9
    assert module.count_splits(many, 256, 3) == 3, "each has a block to read"


def test_a_list_shares_out_work_where_much_may_lie_in_few_tiles(driver: Driver, tmp_path: Path) -> None:
    """Heads of one sequence that keep all are alike; reading little takes no longer than a list."""
    module = load(emit("softmax_decode", KERNEL), tmp_path, "listed")
    module.LISTED_BLOCKS = 18
    lists = []
    for sizes, pasts, keeps in (
        ((1,), (500,), None),
        ((1,), (500,), ((3, 20), None, None)),
        ((1, 1), (500, 3), None),
        ((1, 1), (3, 3), None),
        ((1, 1), (500, 500), ((3, 20),) * 3),
    ):
        case = Case(KERNEL, HEADS, sizes, pasts, dtype=torch.float16, cache=True, keeps=keeps)
        lists.append(len(launched(module, driver, build(case))) == 3)
    assert lists == [False, True, True, False, False]


def test_hooks_of_a_profiler_see_every_launch(driver: Driver, tmp_path: Path) -> None:
    from triton import knobs

    module = load(emit("softmax_prefill", KERNEL), tmp_path, "hooked")
    inputs, seen = inputs_of(), []
    plain = launched(module, driver, inputs)
    hook = seen.append
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        assert launched(module, driver, inputs) == plain
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert len(seen) == 1, "given to the launcher, which calls it"


def test_a_call_without_queries_launches_nothing(driver: Driver, tmp_path: Path) -> None:
    for skeleton in ("softmax_prefill", "softmax_decode"):
        module = load(emit(skeleton, KERNEL), tmp_path, f"empty_{skeleton}")
        nothing = build(Case(KERNEL, HEADS, (0, 0), (5, 0), dtype=torch.float16, cache=True))
        assert launched(module, driver, nothing) == []
