"""Who takes part where matrix states are timed: the providers of the folder's own runtime, and flash-linear-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attnc.bench.peers import PACKED, Prepared, ours
from attnc.bench.states import StatesWork


@dataclass(frozen=True)
class StatesProvided:
    """One of the runtime's providers: `triton` is the generated kernels."""

    name: str

    def provider(self, work: StatesWork) -> Any:
        """Which of them."""
        del work
        return self.name

    def refuse(self, work: StatesWork) -> str | None:
        """Kernels need a GPU, and a folder can only do what its runtime holds."""
        provider = self.provider(work)
        if provider == "triton" and work.q.device.type != "cuda":
            return "generated kernels need a GPU"
        return work.launch.lacking(provider, work.q.device, work.q.dtype)

    def prepare(self, work: StatesWork) -> Prepared:
        """Each call gives the states after, too, as it does in a model."""
        module, scan = work.launch.folder.runtime("recurrence"), work.launch.scan
        provider = work.launch.provider(self.provider(work))
        before = None if work.before is None else module.States(work.before, work.total)
        fixed = {"decay": work.decay, "erase": work.erase, "write": work.write}

        def run(q: Tensor, k: Tensor, v: Tensor, **gates: Tensor) -> Tensor:
            steps = module.Steps(q, k, v, **(fixed | gates), heads=scan.heads, scale=scan.scale, normalize=scan.normalize)
            o: Tensor = provider(steps, before, work.batch)[0]
            return o

        inputs = {name: PACKED.lay(x, work.sequences) for name, x in _inputs(work).items()}
        return Prepared(run, inputs, PACKED)


def _inputs(work: StatesWork) -> dict[str, Tensor]:
    return {"q": work.q, "k": work.k, "v": work.v, **work.gates}


@dataclass(frozen=True)
class StatesPlanned(StatesProvided):
    """The provider that a built model would run, where that is not ours already."""

    name: str = "planned"

    def refuse(self, work: StatesWork) -> str | None:
        """It is not run twice."""
        provider = self.provider(work)
        return f"is {provider}" if provider == ours(work.q.device) else super().refuse(work)

    def provider(self, work: StatesWork) -> Any:
        """As the folder's plan for this kind of device says."""
        return work.planned


PEERS: dict[str, StatesProvided] = {
    "planned": StatesPlanned(),
    "fla": StatesProvided("fla"),
    "torch": StatesProvided("torch"),
    "reference": StatesProvided("reference"),
}
"""What `--against` names for them; ours is not among them."""
