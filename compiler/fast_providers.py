"""Who can run a launch of fast weights, and what each would ask for it.

| name | is |
|---|---|
| triton | generated kernels from chunk to chunk, plain PyTorch for many chunks side by side |
| torch | all tokens of a chunk at once, chunk after chunk, in plain PyTorch in fp32 |
| reference | the formula token by token, its gradients by autograd |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.cost import Work, Workload, seconds
from attnc.compiler.device import Device
from attnc.compiler.families import FastWeights
from attnc.compiler.planned import Price, Refusal
from attnc.compiler.spec import Phase
from attnc.compiler.taught import Taught

BLOCK = 64
"""Tokens among which plain PyTorch takes sums pair by pair."""

LAUNCHES, LAUNCHES_PER_WEIGHT, LAUNCHES_PER_BLOCK = 30, 12, 12
REFERENCE_LAUNCHES_PER_TOKEN = 60

MOST_MAPS, MOST_WIDTH, MOST_NORMED = 2, 128, 64
"""What generated kernels take: maps of a net, widths of keys and values, and those of one map with a norm."""

COMPARED: bool = False
"""Whether a GPU has run the generated kernels right: before, no plan chooses them."""

GROUP, LAUNCHES_PER_GROUP = 8192, 40
"""Tokens that are read and learned side by side, and PyTorch's launches for them."""


class Nets(NamedTuple):
    """A launch of fast weights: all that its price depends on."""

    family: FastWeights
    heads: int
    k_heads: int
    v_heads: int
    chunk: int

    @classmethod
    def of(cls, one: Taught) -> Nets:
        """Those of a kind."""
        return cls(one.family, one.heads, one.streams["k"][0], one.streams["v"][0], one.chunk)


class Task(NamedTuple):
    """A launch in one phase."""

    nets: Nets
    phase: Phase
    device: Device
    load: Workload

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return self.load.batch * (1 if self.phase == "decode" else self.load.length)

    @property
    def passes(self) -> float:
        """How often the work is done: training goes back through gradients too."""
        return 4.0 if self.phase == "train" else 1.0

    @property
    def chunks(self) -> float:
        """Chunks of a sequence in a call; a decode step is its share of one."""
        return 1 / self.nets.chunk if self.phase == "decode" else max(1.0, self.load.length / self.nets.chunk)


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


def learned(task: Task) -> Work:
    """Of every token one pass through the net to read, and of its key two to learn and one to write, in fp32; `after_write`
    also products of tokens of a block, and while decoding the gradients of the unfinished chunk once more.

    Weights, and momentum where there is some, are read and written once a chunk.
    """
    nets, family = task.nets, task.nets.family
    again = 1 + (nets.chunk / 2 if task.phase == "decode" and family.after_write else 0)
    of_net = 2 * family.numbers * (1 + 3 * again)
    width = family.key_width + family.value_width + 2 * family.hidden * (2 if family.gated else family.depth - 1)
    within = 4 * BLOCK * width if family.after_write else 0
    states = family.numbers * (1 + (family.momentum != "none")) * nets.heads * task.load.batch
    read = family.key_width * (nets.heads + nets.k_heads) + family.value_width * (nets.heads + nets.v_heads)
    return Work(
        flops=task.tokens * nets.heads * (of_net + within) * task.passes,
        exponentials=task.tokens * nets.heads * 2 * family.hidden * max(1, family.depth - 1) * task.passes,
        bytes=(4 * task.tokens * read + 8 * states * max(task.chunks, 0.5)) * task.passes,
    )


def step(task: Task) -> Work:
    """Of one token of each sequence: its net's weights are read, and its share of a chunk's lesson is learned."""
    family, nets = task.nets.family, task.nets
    lesson = learned(task)
    again = 2 if family.after_write else 1
    weights = 4 * family.numbers * nets.heads * task.load.batch * again
    return replace(lesson, bytes=lesson.bytes + weights)


def unkept(family: FastWeights) -> str | None:
    """Why there are no generated kernels of a member, if there are none."""
    widest = max(family.key_width, family.value_width)
    if family.gated or family.depth > MOST_MAPS:
        return f"generated kernels take nets of up to {MOST_MAPS} maps" if not family.gated else "no kernels of gated nets"
    if family.after_decay:
        return "no kernels of errors after decay"
    most = MOST_NORMED if family.norm and family.depth == 1 else MOST_WIDTH
    return f"generated kernels take widths of up to {most}" + " with a norm" * (most < MOST_WIDTH) if widest > most else None


def unstepped(family: FastWeights) -> str | None:
    """Why there is no generated kernel of single steps, if there is none."""
    if family.depth > MOST_MAPS or family.after_decay:
        return unkept(family)
    widest = max(family.key_width, family.value_width)
    return f"generated kernels take widths of up to {MOST_WIDTH}" if widest > MOST_WIDTH else None


def _triton(task: Task) -> Price | str:
    """From chunk to chunk one launch a group of chunks; the rest is plain PyTorch, a group at a time.

    Training goes there twice where there are several groups, and back.
    """
    nets, family, device = task.nets, task.nets.family, task.device
    reason = unstepped(family) if task.phase == "decode" else unkept(family)
    if reason is not None or not device.is_gpu:
        return reason or "generated kernels need a GPU"
    if not COMPARED:
        return "no GPU has compared these kernels yet; `attnc verify` does, load(use = 'triton') runs them"
    if task.phase == "decode":
        work = replace(step(task), launches=2)
        price = seconds(work, device, device.efficiency["triton"]["decode"], matrix=False)
        return Price(provider="triton", seconds=price, how="step")
    groups = max(1.0, min(task.chunks**0.5, task.load.length * task.load.batch / GROUP))
    launches = (1 + LAUNCHES_PER_GROUP) * groups
    work = replace(learned(task), launches=int(launches * task.passes))
    efficiency = device.efficiency["triton"][task.phase]
    price = seconds(work, device, efficiency, matrix=task.load.width == 2)
    return Price(provider="triton", seconds=price, how=f"chunks of {nets.chunk}")


def _torch(task: Task) -> Price | str:
    nets, family, decode = task.nets, task.nets.family, task.phase == "decode"
    work = learned(task)
    weights = 3 if family.gated else family.depth
    blocks = task.chunks * (-(-nets.chunk // BLOCK) if family.after_write else 1)
    of_chunks = LAUNCHES_PER_WEIGHT * weights * task.chunks + LAUNCHES_PER_BLOCK * blocks
    between = 4 * (family.key_width + family.value_width) + 8 * family.hidden * max(1, family.depth - 1)
    exact = Work(
        flops=work.flops,
        exponentials=work.exponentials,
        bytes=work.bytes + 8 * task.tokens * nets.heads * between * task.passes,
        launches=int((LAUNCHES + of_chunks) * task.passes),
    )
    efficiency = task.device.efficiency["torch"][task.phase]
    price = seconds(exact, task.device, efficiency, matrix=not task.device.is_gpu)
    return Price(provider="torch", seconds=price, how="step" if decode else f"chunks of {nets.chunk}")


def _reference(task: Task) -> Price | str:
    work = learned(task)
    moved = 4 * 8 * task.nets.family.numbers * task.nets.heads * task.tokens
    launches = int(REFERENCE_LAUNCHES_PER_TOKEN * task.tokens * task.passes)
    exact = Work(flops=work.flops, exponentials=0, bytes=moved * task.passes, launches=launches)
    return Price(provider="reference", seconds=seconds(exact, task.device, 0.3, matrix=False))


PROVIDERS: dict[str, Ask] = {"triton": _triton, "torch": _torch, "reference": _reference}
