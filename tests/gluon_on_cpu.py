"""A Gluon kernel's own text run on a CPU, by Python: parties as threads in random order, copies and products that end late.

Nothing here knows a kernel. What it stands in for are the constructs that the kernels use: barriers count arrivals and bytes
and flip phases; a copy's target is NaN until it has ended, at some random later moment; a product reads its operands in shared
memory when it is waited for, and a copy out of it likewise. So a barrier that is missing shows as wrong numbers, and one too
many as a `Deadlock`.
"""

from __future__ import annotations

import ast
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


class Deadlock(AssertionError):
    """All parties wait."""


class Overrun(AssertionError):
    """More parties arrive at a barrier in one phase than it counts."""


class Value(torch.Tensor):
    """Numbers in registers; scalars too."""

    type = SimpleNamespace(layout=None)  # type: ignore[assignment]
    __ior__, __iand__, __iadd__ = torch.Tensor.__or__, torch.Tensor.__and__, torch.Tensor.__add__  # new values, as there
    exact: torch.Tensor | None = None

    def __mul__(self, other: Any) -> Any:
        """Remembers the product as it was before rounding: a sum that follows is one operation with it."""
        product = super().__mul__(other)
        if product.dtype == torch.float32:
            product.exact = self.as_subclass(torch.Tensor).double() * plain(other)
        return product

    def __add__(self, other: Any) -> Any:
        return super().__add__(other) if self.exact is None else value((self.exact + plain(other)).float())

    def __sub__(self, other: Any) -> Any:
        return super().__sub__(other) if self.exact is None else value((self.exact - plain(other)).float())


def value(x: Any, dtype: torch.dtype | None = None) -> Any:
    return torch.as_tensor(x, dtype=dtype).as_subclass(Value)


def plain(x: Any) -> torch.Tensor:
    return torch.as_tensor(x).as_subclass(torch.Tensor)


class Pointer:
    def __init__(self, flat: torch.Tensor, offset: Any = 0) -> None:
        self.flat, self.offset = flat, offset

    @classmethod
    def of(cls, x: torch.Tensor) -> Pointer:
        room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
        return cls(x.detach().as_strided((room,), (1,)))

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(element_ty=self.flat.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.flat, self.offset + more)


class Buffer:
    """Shared memory."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, i: Any) -> Buffer:
        assert 0 <= int(i) < len(self.data), "a slot that is not there"
        return Buffer(self.data[int(i)])

    def reshape(self, shape: Sequence[int]) -> Buffer:
        return Buffer(self.data.view(*shape))

    def permute(self, order: Sequence[int]) -> Buffer:
        return Buffer(self.data.permute(*order))

    def slice(self, start: int, length: int, dim: int) -> Buffer:
        return Buffer(self.data.narrow(dim, start, length))

    def load(self, layout: object) -> Any:
        del layout
        return value(self.data.clone())

    def store(self, x: torch.Tensor) -> None:
        assert x.dtype == self.data.dtype
        self.data.copy_(x)


class Barrier:
    """Of shared memory, too; `done` counts phases that are over."""

    def __init__(self) -> None:
        self.count = self.left = self.bytes = self.done = 0

    def arrive(self, count: int = 0, received: int = 0) -> None:
        self.left -= count
        self.bytes -= received
        if self.left < 0:
            raise Overrun
        if self.left == 0 and self.bytes == 0:
            self.left = self.count
            self.done += 1


@dataclass
class Descriptor:
    """Tells a copy where a tensor [tokens, heads, width] lies and which block of it to take."""

    base: torch.Tensor
    shape: list[int]
    strides: list[int]
    block_shape: list[int]
    layout: object

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def block_type(self) -> Any:
        return SimpleNamespace(nbytes=math.prod(self.block_shape) * self.base.element_size())

    def window(self, at: Sequence[Any]) -> tuple[torch.Tensor, tuple[slice, ...]]:
        """The part of the tensor that a block covers, and where in the block that is."""
        begins = [int(n) for n in at]
        ends = [min(n + size, most) for n, size, most in zip(begins, self.block_shape, self.shape, strict=True)]
        there = [slice(max(begin, 0), max(begin, end, 0)) for begin, end in zip(begins, ends, strict=True)]
        inside = tuple(slice(one.start - begin, one.stop - begin) for one, begin in zip(there, begins, strict=True))
        return self.base.detach().as_strided(self.shape, self.strides)[tuple(there)], inside


class Product:
    """One that has been started; its operands are read when it ends."""

    def __init__(self, a: Any, b: Buffer, c: torch.Tensor, use_acc: bool) -> None:
        self.a, self.b, self.c, self.use_acc, self.result = a, b, c, use_acc, None

    def finish(self) -> None:
        left = self.a.data if isinstance(self.a, Buffer) else self.a.as_subclass(torch.Tensor)
        product = left.float() @ self.b.data.float()
        self.result = value(product + self.c.as_subclass(torch.Tensor) if self.use_acc else product)


class Machine:
    """One program's parties: they take turns where they meet a barrier, in an order drawn from `seed`."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.program = self.programs = 0
        self.copies: list[Callable[[], None]] = []
        self.mine = threading.local()

    def turn(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Hands over; comes back when it is drawn again, while `ready`."""
        if not hasattr(self.mine, "go"):
            assert ready(), "nobody else is there to wait for"
            return
        self.mine.ready[0] = ready
        self.mine.back.release()
        self.mine.go.acquire()
        if self.mine.stop:
            raise SystemExit

    def specialize(self, parties: list[tuple[Callable[..., None], tuple[Any, ...]]], *_sizes: object) -> None:
        back = threading.Semaphore(0)
        running = []
        for function, arguments in parties:
            party = SimpleNamespace(go=threading.Semaphore(0), ready=[lambda: True], alive=True, error=None, stop=[])

            def work(function: Any = function, arguments: Any = arguments, party: Any = party) -> None:
                vars(self.mine).update(go=party.go, ready=party.ready, back=back, stop=party.stop, products=[], stores=[])
                party.go.acquire()
                try:
                    function(*arguments)
                    assert not self.mine.products, "a product that nobody waited for"
                    assert not self.mine.stores, "a copy that nobody waited for"
                except BaseException as error:
                    party.error = error
                party.alive = False
                back.release()

            party.thread = threading.Thread(target=work, daemon=True)
            party.thread.start()
            running.append(party)
        try:
            self._schedule(running, back)
        finally:
            for party in running:
                if party.alive:
                    party.stop.append(True)
                    party.go.release()
                party.thread.join()

    def _schedule(self, running: list[Any], back: threading.Semaphore) -> None:
        while any(party.alive for party in running):
            able = [party for party in running if party.alive and party.ready[0]()]
            if self.copies and (not able or self.draw.random() < 0.1):
                self.copies.pop(self.draw.choice((-1, 0)))()  # the newest or the oldest, and rather late
                continue
            if not able:
                waiting = [str(number) for number, party in enumerate(running) if party.alive]
                raise Deadlock(f"parties {', '.join(waiting)} wait")
            party = self.draw.choice(able)
            party.go.release()
            back.acquire()
            if party.error is not None:
                raise party.error
        assert not self.copies, "a copy that nobody waited for"


class Language:
    """What the names in a kernel's text stand for."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def names(self) -> dict[str, Any]:
        machine = self.machine

        def jit(function: Any = None, **_options: Any) -> Any:
            return jit if function is None else Launcher(function, machine)

        def constexpr(x: Any) -> Any:
            return x

        gl = SimpleNamespace(
            constexpr=constexpr, static_range=range, float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16,
            int32=torch.int32, int64=torch.int64, SliceLayout=no_layout, BlockedLayout=no_layout,
            SwizzledSharedLayout=no_layout, NVMMADistributedLayout=no_layout, DotOperandLayout=no_layout,
            NVMMASharedLayout=SimpleNamespace(get_default_for=no_layout),
            program_id=lambda _axis: value(machine.program), num_programs=lambda _axis: machine.programs,
            cdiv=lambda a, b: (a + b - 1) // b, load=load, store=store, where=where,
            maximum=lambda a, b: torch.maximum(value(a), value(b)), minimum=lambda a, b: torch.minimum(value(a), value(b)),
            abs=torch.abs, exp2=torch.exp2, log2=torch.log2, sum=lambda x, axis: x.sum(axis), max=lambda x, axis: x.amax(axis),
            arange=lambda begin, end, layout=None: value(torch.arange(begin, end, dtype=torch.int32)),
            zeros=lambda shape, dtype, layout=None: value(torch.zeros(shape, dtype=dtype)),
            full=lambda shape, number, dtype, layout=None: value(torch.full(shape, number, dtype=dtype)),
            convert_layout=lambda x, _layout, assert_trivial=False: x,
            inline_asm_elementwise=lambda _text, _registers, xs, dtype, is_pure, pack: xs[0].to(dtype),
            allocate_shared_memory=allocate, warp_specialize=machine.specialize, barrier=lambda: None,
        )  # fmt: skip
        mbarrier = SimpleNamespace(MBarrierLayout=no_layout, init=init, wait=self.wait, expect=self.expect, arrive=self.arrive)
        return {
            "gl": gl, "gluon": SimpleNamespace(jit=jit), "mbarrier": mbarrier, "fence_async_shared": lambda: None,
            "tma": SimpleNamespace(async_load=self.tma_load, async_store=self.tma_store, store_wait=self.store_wait),
            "warpgroup_mma": self.mma, "warpgroup_mma_wait": self.mma_wait, "TensorDescriptor": Descriptor,
        }  # fmt: skip

    def wait(self, barrier: Barrier, phase: Any, pred: Any = True) -> None:
        if pred:
            self.machine.turn(lambda: (barrier.done & 1) != int(phase))

    def expect(self, barrier: Barrier, size: int) -> None:
        barrier.bytes += size
        barrier.arrive(1)

    def arrive(self, barrier: Barrier, count: int = 1) -> None:
        self.machine.turn()
        barrier.arrive(count)

    def tma_load(self, descriptor: Descriptor, at: Sequence[Any], barrier: Barrier, target: Buffer) -> None:
        target.data.fill_(math.nan)
        source, inside = descriptor.window(at)

        def copy() -> None:
            target.data.zero_()
            target.data[inside] = source
            barrier.arrive(0, descriptor.block_type.nbytes)

        self.machine.copies.append(copy)

    def tma_store(self, descriptor: Descriptor, at: Sequence[Any], source: Buffer) -> None:
        target, inside = descriptor.window(at)
        self.machine.mine.stores.append(lambda: target.copy_(source.data[inside]))

    def store_wait(self, pending: int) -> None:
        stores = self.machine.mine.stores
        self.machine.turn()
        while len(stores) > pending:
            stores.pop(0)()

    def mma(self, a: Any, b: Buffer, c: torch.Tensor, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async
        product = Product(a, b, c, use_acc)
        self.machine.mine.products.append(product)
        return product

    def mma_wait(self, pending: int, deps: Sequence[Any]) -> Any:
        products = self.machine.mine.products
        self.machine.turn()
        while len(products) > pending:
            products.pop(0).finish()
        results = tuple(one.result if isinstance(one, Product) else one for one in deps)
        assert all(one is not None for one in results), "a product is read before its end"
        return results[0] if len(results) == 1 else results


class Launcher:
    """A jitted function: called by another one, or launched."""

    def __init__(self, function: Callable[..., Any], machine: Machine) -> None:
        self.function, self.machine = function, machine

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            constants = {name: x for name, x in options.items() if name.isupper()}
            given = [Pointer.of(x) if isinstance(x, torch.Tensor) else x for x in arguments]
            for self.machine.program in range(grid[0]):
                self.machine.programs = grid[0]
                self.function(*given, **constants)

        return launch


def no_layout(*_numbers: Any) -> None:
    return None


def where(condition: Any, a: Any, b: Any) -> Any:
    return torch.where(value(condition), value(a), value(b))


def load(pointer: Pointer, mask: Any = True, other: float = 0.0) -> Any:
    places, live = torch.broadcast_tensors(plain(pointer.offset), plain(mask))
    assert not bool((live & ((places < 0) | (places >= len(pointer.flat)))).any()), "a number that is not there"
    return value(torch.where(live, pointer.flat[torch.where(live, places, 0).long()], other).to(pointer.flat.dtype))


def store(pointer: Pointer, x: torch.Tensor, mask: Any = True) -> None:
    mask = plain(mask)
    places, numbers, live = torch.broadcast_tensors(*(plain(one) for one in (pointer.offset, x, mask)))
    pointer.flat[places[live].long()] = numbers[live]


def allocate(dtype: torch.dtype, shape: Sequence[int], layout: object) -> Any:
    del layout
    if dtype == torch.int64:
        barriers = [Barrier() for _ in range(shape[0])]
        return SimpleNamespace(index=lambda i: barriers[int(i)])
    return Buffer(torch.full(tuple(shape), math.nan if dtype.is_floating_point else -(2**31), dtype=dtype))


def init(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.left = count


def module(text: str, seed: int = 0, processors: int = 2) -> ModuleType:
    """A kernel file whose launches run here, on so many multiprocessors."""
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if not isinstance(node, ast.ImportFrom)]
    made = ModuleType("emitted")
    vars(made).update(Language(Machine(seed)).names())
    exec(compile(tree, str(Path(__file__)), "exec"), vars(made))
    vars(made).get("PROCESSORS", {})[torch.device("cpu")] = processors
    return made
