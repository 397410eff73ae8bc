"""Who can run a launch of channel states, and what each would ask for it.

| name | is |
|---|---|
| triton | generated kernels; complex states have none |
| torch | associative scans of chunks in plain PyTorch, in fp32 |
| reference | the formula token by token |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.cost import Work, Workload, seconds
from attnc.compiler.device import Device
from attnc.compiler.families import Channels
from attnc.compiler.planned import Price, Refusal
from attnc.compiler.spec import Phase

CHUNK, CHUNK_PASSES = 64, 6
"""Tokens of a chunk of plain PyTorch, and how often it goes over them: the logarithm."""
TORCH_LAUNCHES_PER_CHUNK, TORCH_LAUNCHES_PER_STEP = 45, 14
REFERENCE_LAUNCHES_PER_TOKEN = 8
MOST_NUMBERS = 256
"""The widest state of a channel that kernels take."""


class ChannelLaunch(NamedTuple):
    """A launch of channel states: all that its price depends on."""

    family: Channels
    channels: int


class Task(NamedTuple):
    """A launch in one phase."""

    launch: ChannelLaunch
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
        return 4.0 if self.phase == "train" else 1.0

    @property
    def numbers(self) -> int:
        """Numbers of states of all tokens; complex ones are two."""
        return self.tokens * self.launch.channels * self.launch.family.state * (1 + self.launch.family.complex_states)


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


def unkept(family: Channels) -> str | None:
    """Why there is no generated kernel of a member, if there is none."""
    if family.complex_states:
        return "kernels have real states"
    return f"states of more than {MOST_NUMBERS} numbers do not fit its tiles" if family.state > MOST_NUMBERS else None


def work(task: Task, between: float = 0.0) -> Work:
    """Element by element, with `between` numbers written and read again for each of a state; u, step and y are in fp32."""
    family, channels = task.launch.family, task.launch.channels
    of_tokens = 4 * channels * (2 + family.step) + 2 * family.state * (family.write + family.read)
    states = 4 * task.load.batch * channels * family.state * (2 if task.phase == "decode" else 1)
    return Work(
        flops=8 * task.numbers * task.passes,
        exponentials=task.numbers * task.passes * family.step,
        bytes=task.tokens * of_tokens * (3 if task.phase == "train" else 1) + states + 8 * between * task.numbers * task.passes,
    )


def _triton(task: Task) -> Price | str:
    if not task.device.is_gpu:
        return "generated kernels need a GPU"
    reason = unkept(task.launch.family)
    if reason is not None:
        return reason
    if task.launch.family.weights:
        return "no GPU has compared these kernels yet; `attnc verify` does, load(use = 'triton') runs them"
    efficiency = task.device.efficiency["channel"][task.phase]
    return Price(provider="triton", seconds=seconds(work(task), task.device, efficiency, matrix=False))


def _torch(task: Task) -> Price | str:
    decode = task.phase == "decode"
    chunks = -(-task.load.length // CHUNK)
    launches = TORCH_LAUNCHES_PER_STEP if decode else TORCH_LAUNCHES_PER_CHUNK * chunks * task.passes
    exact = work(task, 4 if decode else 4 + 5 * CHUNK_PASSES)
    price = seconds(replace(exact, launches=int(launches)), task.device, 0.5, matrix=False)
    return Price(provider="torch", seconds=price, how="step" if decode else f"chunks of {CHUNK}")


def _reference(task: Task) -> Price | str:
    launches = int(REFERENCE_LAUNCHES_PER_TOKEN * task.tokens * task.passes)
    exact = replace(work(task, 8), launches=launches)
    return Price(provider="reference", seconds=seconds(exact, task.device, 0.3, matrix=False))


PROVIDERS: dict[str, Ask] = {"triton": _triton, "torch": _torch, "reference": _reference}
