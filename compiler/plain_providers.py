"""Who can run a launch that has no kernels, and what each would ask for it: plain PyTorch, or the formula token by token."""

from __future__ import annotations

from typing import NamedTuple

from attnc.compiler.cost import Work, Workload, seconds
from attnc.compiler.device import Device
from attnc.compiler.plain import Cost
from attnc.compiler.planned import Price, Refusal
from attnc.compiler.spec import Phase

REFERENCE_LAUNCHES_PER_TOKEN = 12


class PlainLaunch(NamedTuple):
    """All that the price of such a launch depends on; `kind` and `how` are words for the plan."""

    kind: str
    how: str
    cost: Cost


class Task(NamedTuple):
    """A launch in one phase."""

    launch: PlainLaunch
    phase: Phase
    device: Device
    load: Workload

    @property
    def tokens(self) -> int:
        """New tokens of a sequence."""
        return 1 if self.phase == "decode" else self.load.length

    @property
    def passes(self) -> float:
        """How often the work is done: training goes back through what it computes again."""
        return 4.0 if self.phase == "train" else 1.0

    @property
    def blocks(self) -> int:
        """Of tokens that run together."""
        block = self.launch.cost.block
        return -(-self.tokens // block) if block else 1

    def price(self, provider: str, launches: float, how: str = "") -> Price:
        """With so many launches a sequence."""
        cost, load = self.launch.cost, self.load
        keys = load.length if self.phase == "decode" else load.length / 2
        pairs = cost.pairs + cost.trained * (self.phase == "train")
        work = Work(
            flops=load.batch * self.tokens * (cost.flops + pairs * keys) * self.passes,
            exponentials=0.0,
            bytes=load.width * (cost.numbers + load.batch * (self.tokens * cost.each + self.blocks * keys * cost.pairs / 2)),
            launches=int(launches * self.passes),
        )
        efficiency = self.device.efficiency["torch"][self.phase]
        return Price(provider=provider, seconds=seconds(work, self.device, efficiency), how=how)


def candidates(task: Task, out: tuple[Refusal, ...]) -> tuple[list[Price], tuple[Refusal, ...]]:
    """(those that can, the reference last; those that cannot), without the ones that are left `out`."""
    away, cost = {refusal.provider for refusal in out}, task.launch.cost
    found = [task.price("torch", cost.launches * task.blocks, task.launch.how)] if "torch" not in away else []
    found.append(task.price("reference", REFERENCE_LAUNCHES_PER_TOKEN * task.tokens * task.load.batch))
    refused = Refusal(provider="triton", reason=f"there are no generated kernels of `{task.launch.kind}`")
    return found, () if "triton" in away else (refused,)
