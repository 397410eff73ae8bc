"""Times of fast weights in turns, one table a test: kernels with several blocks, plain PyTorch, libraries where installed."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from fast_cases import FORMS
from torch import Tensor, nn

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.fast import emit_fast, emit_step
from attnc.codegen.verify.net_cases import Case, inputs
from attnc.codegen.verify.step_cases import one_step
from attnc.compiler.families import FastWeights
from attnc.runtime.batch import Batch
from attnc.runtime.fast import Lessons, Stream, Teach, start_of
from attnc.runtime.fast_kernels import fast_kernels
from attnc.runtime.fast_torch import torch_teach

pytestmark = pytest.mark.gpu

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
TITANS = replace(FORMS["titans"], key_width=64, value_width=64, hidden=256)
TTT = replace(FORMS["ttt_linear"], key_width=64, value_width=64)
ROUNDS = 5
MAPS = [(16, 32, 8, 1), (32, 16, 8, 1), (64, 16, 8, 1)]
LINEAR = [(16, 64, 8, 1), (16, 64, 2, 1), (16, 64, 1, 1)]


def provider(form: FastWeights, blocks: tuple[int, ...] | None = None, products: str | None = None) -> Teach:
    """The kernels, with other blocks for 16 bits than the table's."""
    module = load(emit_fast(form, products), FOLDER, f"fast_{abs(hash((form, blocks, products)))}")
    if blocks is not None:
        module.BLOCKS.update({key: blocks for key in module.BLOCKS if key[1] == 2})
    return fast_kernels(module)


def milliseconds(step: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def table(title: str, steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians in turns, and the most memory beside what was there, printed; what fails is said."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks = {}
    for name, step in steps.items():
        try:
            step()
        except Exception as problem:
            print(f"{title} | {name} | {type(problem).__name__}: {str(problem).splitlines()[0][:90]}")  # noqa: T201
            continue
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    for _ in range(ROUNDS):
        for name in peaks:
            times[name].append(milliseconds(steps[name]))
    medians = {name: statistics.median(times[name]) for name in peaks}
    for name, median in medians.items():
        print(f"{title} | {name} | {median:.3f} ms | {peaks[name]:.0f} MiB")  # noqa: T201
    return medians


@functools.lru_cache(maxsize=1)
def drawn(case: Case) -> dict[str, Tensor]:
    """What comes in, q, k and v in bf16."""
    return {key: x.to(torch.bfloat16 if key in "qkv" else torch.float32).requires_grad_() for key, x in inputs(case).items()}


def text_of(form: FastWeights, tokens: int, heads: int, chunk: int, teach: Teach) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A launch over one text in bf16, and what it is differentiated by."""
    case = Case(form, (tokens,), (0,), chunk, heads, heads, torch.bfloat16, "cuda")
    _, batch = Batch.of(torch.zeros(1, tokens, dtype=torch.int64, device="cuda"))
    given = drawn(case)
    start = {key.removeprefix("start."): x for key, x in given.items() if key.startswith("start.")}
    norm = (given["weight"], given["bias"]) if form.norm else None
    rates = (given.get("lr"), given.get("momentum"), given.get("decay"))

    def forward() -> Tensor:
        lessons = Lessons(given["q"], given["k"], given["v"], rates, start, norm, keep=False)
        return teach(case.rule, lessons, start_of(lessons, case.rule, 1), Stream.of(batch, chunk))[0]

    return forward, [x for key, x in given.items() if not key.startswith(("before", "moment."))]


def shares(title: str, step: Callable[[], object]) -> None:
    """Where the time of one step goes on the GPU, printed: the longest kernels, all of them, and the whole step beside them."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total, number = (
        sum(row.self_device_time_total for row in rows),
        sum(row.count for row in rows if row.self_device_time_total),
    )
    print(f"{title} | on the GPU {total / 1e3:.3f} ms in about {number} launches; {milliseconds(step):.3f} ms in all")  # noqa: T201
    for row in rows[:9]:
        print(f"{title} |   {row.key[:60]} | {row.count} x | {row.self_device_time_total / 1e3:.3f} ms")  # noqa: T201


def both(forward: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[Callable[[], object], Callable[[], object]]:
    """(a pass without gradients, one with its way back)."""

    def alone() -> None:
        with torch.no_grad():
            forward()

    def train() -> None:
        o = forward()
        torch.autograd.grad(o, leaves, torch.ones_like(o), allow_unused=True)

    return alone, train


def compared(
    form: FastWeights, tokens: int, heads: int, chunk: int, blocks: list[tuple[int, ...]], others: dict[str, object]
) -> None:
    """Both passes of every variant, of plain PyTorch and of `others`."""
    teaches = {
        "kernels": provider(form),
        "kernels, products of bf16": provider(form, None, "bf16"),
    }
    if tokens <= 512 * chunk:  # thousands of chunks one after another take plain PyTorch seconds
        teaches["plain PyTorch"] = torch_teach
    teaches |= {f"kernels {row}": provider(form, row) for row in blocks}
    passes = {name: both(*text_of(form, tokens, heads, chunk, teach)) for name, teach in teaches.items()}
    for at, word in enumerate(("forward", "forward and backward")):
        steps = {name: pair[at] for name, pair in passes.items()}
        steps |= {name: pair[at] for name, pair in others.items() if isinstance(pair, tuple) and len(pair) > at}
        table(f"{tokens} tokens, {heads} heads, chunks of {chunk}, {word}", steps)
    for at, word in enumerate(("forward", "forward and backward")):
        shares(f"{tokens} tokens, {word}", passes["kernels"][at])


def test_titans() -> None:
    """Against titans-pytorch: 15 times its forward pass and 8 times both are asked."""
    others: dict[str, object] = {}
    try:
        import titans_pytorch as library
    except ImportError as problem:
        print(f"titans-pytorch is not installed: {problem}")  # noqa: T201
    else:
        net = library.MemoryMLP(64, depth=2, expansion_factor=4.0)
        memory: nn.Module = library.NeuralMemory(dim=512, chunk_size=64, dim_head=64, heads=8, model=net).cuda()
        x = torch.randn(1, 8192, 512, device="cuda", requires_grad=True)
        others["titans-pytorch"] = both(lambda: memory(x)[0], [x, *memory.parameters()])
    compared(TITANS, 8192, 8, 64, MAPS, others)


def test_ttt_linear() -> None:
    """Against flash-linear-attention's forward pass: 1.5 times is asked."""
    others: dict[str, object] = {}
    try:
        from fla.ops.ttt import chunk_ttt_linear
    except ImportError as problem:
        print(f"flash-linear-attention is not installed: {problem}")  # noqa: T201
    else:
        q, k, v = (torch.randn(1, 32768, 16, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        w, b = torch.ones(16, 64, device="cuda", dtype=q.dtype), torch.zeros(16, 64, device="cuda", dtype=q.dtype)
        eta = torch.rand(1, 32768, 16, 1, device="cuda", dtype=q.dtype) * 0.01
        others["flash-linear-attention"] = (lambda: chunk_ttt_linear(q, k, v, w, b, eta, chunk_size=16),)
    compared(TTT, 32768, 16, 16, LINEAR, others)


def test_long_texts_take_time_in_proportion() -> None:
    """32k to 256k tokens; within 10 percent is asked. And the memory of training at 32k."""
    found = {}
    for tokens in (32768, 262144):
        alone, train = both(*text_of(TITANS, tokens, 8, 64, provider(TITANS)))
        steps = {"forward": alone} | ({"forward and backward": train} if tokens == 32768 else {})
        found[tokens] = table(f"titans, {tokens} tokens", steps)["forward"] / tokens
        torch.cuda.empty_cache()
    shown = ", ".join(f"{tokens} {1e6 * each:.1f} ns a token" for tokens, each in found.items())
    print(f"titans, in proportion: {shown}; longest by shortest {found[262144] / found[32768]:.3f}")  # noqa: T201


def test_single_steps() -> None:
    """Bytes of weights read at 2.6 TB/s and 15 us are asked of a decode step."""
    for (name, form), sequences in product((("titans", TITANS), ("ttt_linear", TTT)), (1, 64)):
        heads, size = 16, 64 if form is TITANS else 16
        call = one_step(form, sequences, heads, size, torch.bfloat16, "cuda")
        steps = {}
        for row in (None, (16, 32, 8, 1), (16, 64, 4, 1), (16, 128, 8, 1)):
            module = load(emit_step(form), FOLDER, f"step_{abs(hash((form, row)))}")
            for due in (False, True):
                own = call if due else call._replace(past=call.past - size // 2)
                graph = torch.cuda.CUDAGraph()
                module.step(own, False, blocks=row), module.step(own, True, blocks=row)
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    for _ in range(20):
                        module.step(own, False, blocks=row), module.step(own, True, blocks=row)
                steps[f"{row or 'table'}{', the chunk is whole' if due else ''}"] = graph.replay
        asked = sum(w.numel() for w in call.weights) * 4 / 2.6e9 + 0.015
        table(f"20 steps of {name}, {sequences} sequences, asked {20 * asked:.3f} ms", steps)
