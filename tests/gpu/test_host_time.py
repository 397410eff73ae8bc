"""Host time of one launch: a kernel file's function, the registered operator, a layer's call; medians of 1,000 calls."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.verify.cases import Case, Union, build
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.launch import Kernels

KERNEL = Softmax(1, head_width=128, value_width=128, group=4)
HEADS = (Union(nears=((1, 0, 127, 0),)),) * 8
LAUNCHER, OPERATOR = 15.0, 40.0
"""Microseconds that a launched kernel may take, and the operator or a layer's call; decoding launches two kernels. Without
gradients PyTorch asks an operator of nothing but its result in `inference_mode`; a layer's call needs no operator then.
"""


def host_time(call: Callable[[], object]) -> float:
    """Microseconds on the host; the device, which is given little to do, is waited for between the calls."""
    for _ in range(50):
        call()
    times = []
    for number in range(1000):
        if number % 20 == 0:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e6 * median(times)


@pytest.mark.parametrize(("phase", "kernels"), [("prefill", 1), ("decode", 2)])
def test_host_time_of_a_launch(phase: str, kernels: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="attnc-"))
    modules = [load(emit(name, KERNEL), folder, f"timed_{name}_{phase}") for name in FAMILIES["softmax"]]
    sizes, pasts = ((64,), (0,)) if phase == "prefill" else ((1,) * 4, (500,) * 4)
    case = Case(KERNEL, HEADS, sizes, pasts, dtype=torch.bfloat16, cache=phase == "decode", device="cuda")
    inputs = build(case)
    launch = Kernels.of(*modules)
    q, part, rows, _, batch, scale, cap, sink = inputs.arguments
    places = [batch.offsets, batch.past, part.k_begin, part.v_begin, part.stored, part.base, part.pinned, part.ring]
    lengths = [part.k_stride, part.v_stride, batch.max_new, part.max_stored, part.max_slots]
    flat = (q, part.k, part.v, scale, rows, places, lengths, part.rings, part.shared, cap, sink)
    with torch.no_grad():
        bare = host_time(lambda: modules[kernels - 1].attend(*inputs.arguments))
        guarded = host_time(lambda: launch.operators.attend(*flat))
        layer = host_time(lambda: launch(*inputs.arguments))
    with torch.inference_mode():
        operator = host_time(lambda: launch.operators.attend(*flat))
    with capsys.disabled():
        figures = (
            f"launcher {bare:.1f} us, operator {operator:.1f} us ({guarded:.1f} in no_grad), a layer's call {layer:.1f} us"
        )
        sys.stdout.write(f"\n{phase}: {figures}\n")
    assert bare < LAUNCHER * kernels
    assert operator < OPERATOR
    assert layer < OPERATOR
