"""Who can run a launch of matrix states, and what each would ask for it.

| name | is |
|---|---|
| triton | generated kernels |
| fla | the package flash-linear-attention |
| torch | a parallel form in chunks of plain PyTorch, in fp32; token by token for a few |
| reference | the formula token by token |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.cost import Work, Workload, seconds
from attnc.compiler.device import Device
from attnc.compiler.families import Recurrence
from attnc.compiler.planned import Price, Refusal
from attnc.compiler.providers import UNMEASURED
from attnc.compiler.scanned import Scanned
from attnc.compiler.spec import Phase

CHUNK = 64
MOST_KEY_WIDTH = 256
"""Of generated kernels, which hold all rows of some columns of a state, and of flash-linear-attention."""
TORCH_LAUNCHES, TORCH_LAUNCHES_PER_CHUNK, TORCH_LAUNCHES_PER_STEP = 40, 8, 12
REFERENCE_LAUNCHES_PER_TOKEN = 8


class States(NamedTuple):
    """A launch of matrix states: all that its price depends on."""

    family: Recurrence
    heads: int
    q_heads: int
    k_heads: int
    v_heads: int

    @classmethod
    def of(cls, one: Scanned) -> States:
        """Those of a kind; a key made of the gate has a head for each state."""
        heads = {name: heads for name, (heads, _) in one.streams.items()}
        return cls(one.family, one.heads, heads.get("q", one.heads), heads.get("k", one.heads), heads.get("v", one.heads))


class Task(NamedTuple):
    """A launch in one phase."""

    states: States
    phase: Phase
    device: Device
    load: Workload

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.load.batch * (1 if self.phase == "decode" else self.load.length)

    @property
    def passes(self) -> float:
        """How often the work is done: training goes back through what it recomputes."""
        return 3.5 if self.phase == "train" else 1.0


Ask = Callable[[Task], Price | str]
"""What a provider asks for a task, or why it cannot do it."""


def candidates(task: Task, out: tuple[Refusal, ...]) -> tuple[list[Price], tuple[Refusal, ...]]:
    """(those that can, cheapest first and the reference last; those that cannot), without the ones that are left `out`."""
    away = {refusal.provider for refusal in out}
    found = [(name, ask(task)) for name, ask in PROVIDERS.items() if name not in away]
    refused = tuple(Refusal(provider=name, reason=reason) for name, reason in found if isinstance(reason, str))
    priced = [price for _, price in found if isinstance(price, Price)]
    priced.sort(key=lambda price: (price.provider == "reference", price.seconds or 0.0))
    return priced, refused


def chunked(task: Task, width: int) -> Work:
    """A scan in chunks with `width` bytes a number: products within chunks, and with the state that is carried between them.

    Decoding reads and writes the states, which are in fp32.
    """
    states, family = task.states, task.states.family
    keys, values, delta = family.key_width, family.value_width, family.update == "delta"
    within = 0 if task.phase == "decode" else CHUNK * (keys + values)
    flops = 4 * keys * values + within + delta * (2 * keys * values + within)
    strengths = {"scalar": 1, "vector": keys if delta else 0}
    gates = {"none": 0, "head": 0, "scalar": 1, "vector": keys}[family.decay] + delta * strengths[family.erase]
    gates += delta * (1 if family.write == "scalar" else values)
    read = states.q_heads * keys + states.k_heads * keys + (states.v_heads + states.heads) * values
    moved = task.tokens * (width * read + 4 * gates * states.heads)
    held = task.load.batch * states.heads * keys * values * 4 * (2 if task.phase == "decode" else 1)
    exponentials = task.tokens * states.heads * {"none": 0, "head": 0, "scalar": CHUNK, "vector": 4 * keys}[family.decay]
    return Work(
        flops=task.tokens * states.heads * flops * task.passes,
        exponentials=0 if task.phase == "decode" else exponentials,
        bytes=moved * (3 if task.phase == "train" else 1) + held,
    )


def unkept(family: Recurrence) -> str | None:
    """Why there are no generated kernels of a member, if there are none."""
    return f"generated kernels take keys of up to {MOST_KEY_WIDTH}" if family.key_width > MOST_KEY_WIDTH else None


def _triton(task: Task) -> Price | str:
    """One sweep along a sequence, behind what its chunks need; training goes there again, and back."""
    device, family = task.device, task.states.family
    reason = unkept(family)
    if not device.is_gpu or reason is not None:
        return reason or "generated kernels need a GPU"
    before = (family.update == "delta" or family.decay == "scalar") + (family.decay == "vector")
    launches = {"decode": 1, "prefill": 1 + before, "train": 4 + 2 * before + (family.decay == "vector")}[task.phase]
    work = replace(chunked(task, task.load.width), launches=launches)
    how = "step" if task.phase == "decode" else f"chunks of {CHUNK}"
    return Price(provider="triton", seconds=seconds(work, device, device.efficiency["scan"][task.phase]), how=how)


def _fla(task: Task) -> Price | str:
    device = task.device
    if not device.is_gpu or "fla" not in device.efficiency:
        return UNMEASURED if device.is_gpu else "flash-linear-attention's kernels need a GPU"
    if task.states.family.key_width > MOST_KEY_WIDTH:
        return f"flash-linear-attention takes keys of up to {MOST_KEY_WIDTH}"
    work = chunked(task, task.load.width)
    return Price(provider="fla", seconds=seconds(work, device, device.efficiency["fla"][task.phase]))


def _torch(task: Task) -> Price | str:
    """In fp32; every step writes its result to memory."""
    work, family = chunked(task, 4), task.states.family
    chunks = -(-task.load.length // CHUNK)
    launches = TORCH_LAUNCHES + TORCH_LAUNCHES_PER_CHUNK * chunks
    between = 6 * family.key_width + 3 * family.value_width + 3 * CHUNK
    if task.phase == "decode":
        launches, between = TORCH_LAUNCHES_PER_STEP, 0
    moved = work.bytes + 8 * task.tokens * task.states.heads * between * task.passes
    exact = Work(flops=work.flops, exponentials=work.exponentials, bytes=moved, launches=int(launches * task.passes))
    how = "step" if task.phase == "decode" else f"chunks of {CHUNK}"
    efficiency = task.device.efficiency["torch"][task.phase]
    price = seconds(exact, task.device, efficiency, matrix=not task.device.is_gpu)
    return Price(provider="torch", seconds=price, how=how)


def _reference(task: Task) -> Price | str:
    states, family = task.states, task.states.family
    numbers = task.tokens * states.heads * family.key_width * family.value_width
    work = Work(
        flops=6 * numbers * task.passes,
        exponentials=0,
        bytes=4 * 4 * numbers * task.passes,
        launches=int(REFERENCE_LAUNCHES_PER_TOKEN * task.tokens * task.passes),
    )
    return Price(provider="reference", seconds=seconds(work, task.device, 0.3, matrix=False))


PROVIDERS: dict[str, Ask] = {"triton": _triton, "fla": _fla, "torch": _torch, "reference": _reference}
