"""A machine's device table, measured: its peaks, and the share of them that each provider reaches in each phase.

Shares come from a few usual launches: each is compared with float64 and timed as in a bench, and its price at full share
(compiler/cost.py) is divided by its time. A table says what a launch costs on this machine, not what a data sheet promises.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import attnc
from attnc.bench.fields import AnyLaunch
from attnc.bench.launches import launches, open_folder
from attnc.bench.machine import processor
from attnc.bench.peers import Peer, Provided
from attnc.bench.rates import measure
from attnc.bench.report import Row
from attnc.bench.run import Options, row
from attnc.bench.states import StatesLaunch, states_launches
from attnc.bench.states_peers import StatesProvided
from attnc.bench.tables_report import Lack
from attnc.bench.timing import Roof, clock
from attnc.bench.work import unions
from attnc.codegen.build import Options as BuildOptions
from attnc.codegen.build import build
from attnc.compiler import cost, device, scan_providers
from attnc.compiler.cost import Seen, Workload
from attnc.compiler.device import Device
from attnc.compiler.families import Recurrence
from attnc.compiler.providers import PROVIDERS, Task
from attnc.compiler.spec import Phase

TEXT = """model usual {{
  vocab = 256, dim = {dim}, layers = 4, ffn = swiglu(64), norm = rms(1e-6)
  heads = {heads}, kv_heads = {kv_heads}, head_dim = {width}, rope = 10000
}}
layers {{
  0: full
  1: sink({sink}) | window({window})
  2: heads {{ 0: full, else: sink({sink}) | window({window}) }}
  3: window({window})
}}
"""

STATES = """model usual_states {
  vocab = 256, dim = 4096, layers = 3, ffn = swiglu(64), norm = rms(1e-6), heads = 32, head_dim = 128, rope = none
}
layers {
  0: linear(decay = scalar)
  1: linear(decay = vector)
  2: linear(update = delta, decay = scalar) { qk_norm = l2 }
}
"""

SIZES = {
    "cuda": {"dim": 4096, "heads": 32, "kv_heads": 8, "width": 128, "sink": 64, "window": 1024},
    "cpu": {"dim": 256, "heads": 8, "kv_heads": 2, "width": 64, "sink": 4, "window": 64},
}
LENGTHS = {
    "cuda": {"forward": 16384, "backward": 16384, "decode": 65536},
    "cpu": {"forward": 512, "backward": 512, "decode": 4096},
}
"""Long enough that a launch's cost is small beside the work."""

PHASES: dict[Phase, tuple[str, ...]] = {"train": ("forward", "backward"), "prefill": ("forward",), "decode": ("decode",)}
"""A plan's phase is the sum of what the bench times."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """The table, what of it is not measured, and which providers were wrong or failed."""

    table: Device
    lacks: tuple[Lack, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """How it is measured: on which device, for how many seconds each, who hears of progress, and tokens by bench phase."""

    where: torch.device
    budget: float
    say: Say
    lengths: Mapping[str, int]

    @property
    def kind(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.where.type == "cuda" else "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """In which numbers the peaks are counted."""
        return torch.bfloat16 if self.kind == "cuda" else torch.float32


def calibrate(
    name: str | None, where: torch.device, budget: float, say: Say, lengths: Mapping[str, int] | None = None
) -> Found:
    """Measures the machine. `name` None: that of the shipped table for it, or a new one from its title."""
    kind = "cuda" if where.type == "cuda" else "cpu"
    asked = Asked(where, budget, say, lengths or LENGTHS[kind])
    rates = measure(where, budget, say)
    base = basis(where)
    with tempfile.TemporaryDirectory(prefix="attnc-calibrate-") as place:
        build(attnc.check(TEXT.format(**SIZES[kind])), Path(place) / "built", BuildOptions(measured=False))  # it may be damaged
        softmaxes, _ = launches(open_folder(Path(place) / "built"))
        usual: list[AnyLaunch] = [*softmaxes]
        if STATE_ROWS & set(base.efficiency):
            build(attnc.check(STATES), Path(place) / "states", BuildOptions(measured=False))
            usual += states_launches(open_folder(Path(place) / "states"))
        rows = list(_rows(usual, base, asked))
    peaks = Device(
        name=name or own_name(where),
        title=title(where),
        architecture="sm_{}{}".format(*torch.cuda.get_device_capability(where)) if kind == "cuda" else "cpu",
        matrix_flops=rounded(rates.matrix_flops),
        vector_flops=rounded(rates.vector_flops),
        bandwidth=rounded(rates.bandwidth),
        exponentials=rounded(rates.exponentials),
        memory=rounded(rates.memory),
        launch=rounded(rates.launch),
        efficiency={},
    )
    efficiency, lacks = _efficiency(usual, base, peaks, rows, asked)
    wrong = [
        f"{result.name} in {one.words}, {one.phase}: {result.reason}"
        for _, one in rows
        for result in one.results
        if result.status in ("wrong", "failed")
    ]
    return Found(replace(peaks, efficiency=efficiency), lacks, tuple(wrong))


def title(where: torch.device) -> str:
    """What the device calls itself; a table is found by it."""
    return torch.cuda.get_device_name(where) if where.type == "cuda" else processor()


def own_name(where: torch.device) -> str:
    """The name under which `--device` finds the machine's table."""
    if where.type != "cuda":
        return "cpu"
    words = re.findall(r"[a-z0-9]+", title(where).lower())
    return next((name for name in device.shipped_names() if name in words), "-".join(words))


def basis(where: torch.device) -> Device:
    """The shipped table for the machine, or the one that stands for it."""
    if where.type != "cuda":
        return device.shipped("cpu")
    name = own_name(where)
    return device.shipped(name if name in device.shipped_names() else device.PORTABLE)


Rows = list[tuple[AnyLaunch, Row]]

KERNELS = {"flash": "torch", "scan": "triton", "channel": "triton"}
"""Rows of a table that are not a provider's name, but of some of its kernels."""

STATE_ROWS = frozenset({"scan", "fla"})
"""Rows that launches of matrix states tell; the others softmaxes do, but for `channel`, which no usual launch tells."""

ALONE = {"torch": "full", "flash": "window"}
"""Rows that are told by one usual launch; the provider's prices of others are mostly those of launching, or another row's."""


def _rows(usual: list[AnyLaunch], base: Device, asked: Asked) -> Iterator[tuple[AnyLaunch, Row]]:
    """Every usual launch in every phase: compared and timed."""
    for launch in usual:
        for phase, length in asked.lengths.items():
            rows = [name for name in base.efficiency if _lack(name, _plan_phase(phase), launch, base, asked) is None]
            if rows:
                asked.say(f"{launch.words}: {phase}, {length} tokens")
                options = Options((length,), (phase,), (), 1, asked.dtype, asked.where, asked.budget)
                provided: Any = StatesProvided if isinstance(launch, StatesLaunch) else Provided
                peers: list[Peer] = [provided(name) for name in dict.fromkeys(KERNELS.get(name, name) for name in rows)]
                yield launch, row(launch, phase, length, peers, options, Roof(1.0, 1.0), clock(asked.where), asked.say)


def _efficiency(
    usual: list[AnyLaunch], base: Device, peaks: Device, rows: Rows, asked: Asked
) -> tuple[dict[str, dict[str, float]], tuple[Lack, ...]]:
    """row -> phase -> share, the geometric mean over the launches; one that could not be measured is the basis's."""
    shares: dict[str, dict[str, float]] = {}
    lacks = []
    for name, phases in base.efficiency.items():
        shares[name] = dict(phases)
        for phase in (one for one in PHASES if one in phases):
            found = [_share(name, phase, launch, peaks, rows, asked) for launch in usual]
            logs = [math.log(share) for share in found if share is not None]
            if logs:
                shares[name][phase] = rounded(math.exp(sum(logs) / len(logs)))
            else:
                some = next((launch for launch in usual if _tells(name, launch)), None)
                reason = "no usual launch tells it" if some is None else _lack(name, phase, some, base, asked)
                reason = reason or _reason(name, phase, rows)
                lacks.append(Lack(provider=name, phase=phase, reason=reason))
    return shares, tuple(lacks)


def _plan_phase(phase: str) -> Phase:
    return next(plan for plan, parts in reversed(PHASES.items()) if phase in parts)


def _tells(name: str, launch: AnyLaunch) -> bool:
    """Whether a usual launch tells the row `name` of a table."""
    if name == "channel" or (name in STATE_ROWS) != isinstance(launch, StatesLaunch):
        return False
    return name not in ALONE or re.fullmatch(rf"{ALONE[name]}(\(\d+\))?", launch.words) is not None


def _lack(name: str, phase: Phase, launch: AnyLaunch, table: Device, asked: Asked) -> str | None:
    """Why a usual launch is not run for the row `name`: its provider is not here, or a plan would not ask it either."""
    provider = KERNELS.get(name, name)
    if not _tells(name, launch):
        return "another launch tells it"
    if (reason := launch.lacking(provider, asked.where, asked.dtype)) is not None:
        return reason
    if phase not in table.efficiency[name]:
        return "it has no such phase"
    found = price(provider, phase, launch, table, 1, asked)
    return found if isinstance(found, str) else None


def _share(name: str, phase: Phase, launch: AnyLaunch, peaks: Device, rows: Rows, asked: Asked) -> float | None:
    """At which share of the peaks the plan's price is the time that was measured; None where none was."""
    provider = KERNELS.get(name, name)
    parts = [one for owner, one in rows if owner is launch and one.phase in PHASES[phase]]
    times = [result.timed.median for one in parts for result in one.results if result.name == provider and result.timed]
    if len(times) < len(PHASES[phase]) or not _tells(name, launch):
        return None
    low, lower = (_at(share, name, phase, launch, peaks, parts[0].length, asked) for share in (SMALL, SMALL / 2))
    full = (lower - low) * SMALL  # a price is full / share + what launching costs
    launching = low - full / SMALL
    seconds = sum(times)
    return full / (seconds - min(launching, seconds / 2))  # behind one another launches cost the device less


SMALL = 1e-3
"""A share at which the peaks alone decide the price, not exponentials."""


def _at(share: float, name: str, phase: Phase, launch: AnyLaunch, peaks: Device, length: int, asked: Asked) -> float:
    found = price(KERNELS.get(name, name), phase, launch, replace(peaks, efficiency={name: {phase: share}}), length, asked)
    assert isinstance(found, float), found
    return found


def price(provider: str, phase: Phase, launch: AnyLaunch, table: Device, length: int, asked: Asked) -> float | str:
    """What a plan would say of a usual launch: seconds, or why the provider is not asked."""
    if isinstance(launch, StatesLaunch):
        states = scan_providers.States(
            family(launch), launch.heads, launch.numbers.q_heads, launch.numbers.k_heads, launch.numbers.v_heads
        )
        load = Workload(length=length, width=asked.dtype.itemsize)
        priced = scan_providers.PROVIDERS[provider](scan_providers.Task(states, phase, table, load))
        return priced if isinstance(priced, str) else float(priced.seconds or 0.0)
    seen = launch.groups(phase, length)
    assert seen is not None, "a usual launch runs in every phase"
    groups = tuple(Seen(heads, union) for heads, union in unions(launch, seen, length))
    variants = (cost.Alternative((), groups),)
    ring = any(hasattr(slots.keep, "recent") for slots in launch.plan.slots)
    counted = cost.Launch(launch.repeat, launch.key_width, launch.value_width, None, variants, ring=ring)
    task = Task(counted, groups, phase, table, Workload(length=length, width=asked.dtype.itemsize))
    found = PROVIDERS[provider](task)
    return found if isinstance(found, str) else float(found.seconds or 0.0)


def family(launch: StatesLaunch) -> Recurrence:
    """The member of the family of matrix states that a launch is."""
    n, fixed = launch.numbers, launch.scan.decay is not None
    decay: Any = "head" if fixed else "none" if n.decay is None else "vector" if n.decay else "scalar"
    erase, write = ("vector" if axes else "scalar" for axes in (n.erase, n.write))
    kinds: Any = {"update": "delta" if launch.delta else "add", "erase": erase, "write": write}
    return Recurrence(decay=decay, **kinds, normalize=launch.scan.normalize, key_width=n.key_width, value_width=n.value_width)


def _reason(name: str, phase: Phase, rows: Rows) -> str:
    """What the rows say of a provider that has no time."""
    provider = KERNELS.get(name, name)
    found = [one for _, one in rows if one.phase in PHASES[phase]]
    told = [result.reason for one in found for result in one.results if result.name == provider and result.reason]
    return [*told, *(one.reason for one in found if one.reason), "it was not timed"][0]


def rounded(number: float) -> float:
    """Three significant digits: more is noise."""
    return float(f"{number:.3g}")
