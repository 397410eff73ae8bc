"""What is timed: softmaxes over keys, and matrix states; each has work, an answer in float64 and participants of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attnc.bench import exact, libraries, states, states_exact, states_peers, work
from attnc.bench.exact import Answer, Found
from attnc.bench.launches import Folder, Launch, Skipped, launches
from attnc.bench.peers import Peer, Provided, ours
from attnc.bench.states import StatesLaunch, StatesWork
from attnc.bench.work import Work

AnyLaunch = Launch | StatesLaunch
AnyWork = Work | StatesWork


@dataclass(frozen=True)
class Field:
    """Functions on launches of one sort and their work. `peers`: who may be named beside the `kernels`."""

    make: Callable[..., Any]
    answer: Callable[[Any], Answer]
    errors: Callable[[Any, Answer, Found], dict[str, float]]
    kernels: Any
    peers: Mapping[str, Any]

    def participants(self, launch: AnyLaunch, device: torch.device, against: tuple[str, ...]) -> list[Peer]:
        """Ours first, the generated kernels always, then those that were named and know such launches."""
        names = dict.fromkeys([ours(device, launch.plain), "triton", *against])
        known = {"triton": self.kernels, **self.peers}
        return [known[name] for name in names if name in known]


SOFTMAX = Field(work.make, exact.answer, exact.errors, Provided("triton"), libraries.PEERS)
STATES = Field(states.make, states_exact.answer, states_exact.errors, states_peers.StatesProvided("triton"), states_peers.PEERS)

AGAINST = tuple(dict.fromkeys([*SOFTMAX.peers, *STATES.peers]))
"""What `--against` names."""


def field_of(launch: AnyLaunch) -> Field:
    """The field of a launch."""
    return STATES if isinstance(launch, StatesLaunch) else SOFTMAX


def everything(folder: Folder) -> tuple[list[AnyLaunch], list[Skipped]]:
    """All distinct launches of a folder, softmaxes first, and those that are not timed."""
    softmaxes, skipped = launches(folder)
    return [*softmaxes, *states.states_launches(folder)], skipped
