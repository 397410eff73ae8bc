"""What candidates cost: bytes of the cache from the spec, milliseconds from a table of costs or measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

import attnc
from attnc.bench.timing import clock, interleaved
from attnc.compiler.cache_spec import cache_spec, row_bytes
from attnc.compiler.planned import Plan
from attnc.compiler.spec import Spec
from attnc.compiler.units import FULL, Unit, Units
from attnc.tune.journal import Key, Row

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

Objective = Literal["decode_ms", "prefill_ms", "kv_bytes"]
OBJECTIVES: tuple[Objective, ...] = ("decode_ms", "prefill_ms", "kv_bytes")
CACHE_TYPE = "bfloat16"
SECONDS = 0.25
"""For which each time is taken, at least five times."""

WARM = 2
"""Steps before one is captured: what they compile and choose is no part of it."""

Say = Callable[[str], None]

Costs = dict[tuple[int, str, str], dict[str, float]]

STEPS = 256
"""Decode steps that a timed cache has room for."""


def table_costs(
    units: Units, every: Sequence[Unit], device: str, length: int, batch: int
) -> dict[tuple[int, str, str], dict[str, float]]:
    """(layer, scope, name of candidate) -> objective -> cost of the whole unit, by a device's table; full attention included.

    A candidate that nobody prices has no milliseconds.
    """
    found: Costs = {}
    most = max(len(unit.candidates) for unit in every)
    for number in range(-1, most):
        picks = {
            unit.place: [FULL if number < 0 else unit.candidates[min(number, len(unit.candidates) - 1)]] * unit.kv_heads
            for unit in every
        }
        spec = units.settled(picks)
        plan = attnc.plan(spec, device, length, batch)
        rows = cache_spec(spec, CACHE_TYPE)
        for unit in every:
            own = [row for row in rows if row.layer == unit.layer and _inside(row.scope, unit)]
            costs = {"kv_bytes": float(batch * sum(row_bytes(row, length) for row in own))}
            for phase in ("decode", "prefill"):
                seconds = _seconds(plan, unit, phase)
                if seconds is not None:
                    costs[f"{phase}_ms"] = 1000 * seconds
            found[(*unit.place, picks[unit.place][0].name)] = costs
    return found


def _inside(scope: str, unit: Unit) -> bool:
    return not unit.scope or scope == unit.scope or scope.startswith(f"{unit.scope}.")


def _seconds(plan: Plan, unit: Unit, phase: str) -> float | None:
    """The price of a unit's nodes, None where one has none."""
    here = [choice for choice in plan.choices if choice.layer == unit.layer and choice.phase == phase]
    prices = [choice.seconds for choice in here if _inside(choice.node.partition("/")[2].rpartition("/")[0], unit)]
    return None if any(price is None for price in prices) else sum(price or 0.0 for price in prices)


def priced(spec: Spec, device: str, objective: str, length: int, batch: int) -> float:
    """A cost of a whole settled spec, as its plan prices its mixers, or its cache."""
    if objective == "kv_bytes":
        return float(batch * sum(row_bytes(row, length) for row in cache_spec(spec, CACHE_TYPE)))
    phase = objective.removesuffix("_ms")
    plan = attnc.plan(spec, device, length, batch)
    return 1000 * sum(choice.seconds or 0.0 for choice in plan.choices if choice.phase == phase)


@torch.no_grad()
def measured(models: Mapping[str, BuiltModel], length: int, batch: int, say: Say) -> dict[str, dict[str, float]]:
    """Milliseconds of a decode step after `length` tokens and of a prefill of as many, of several models in turns.

    On a GPU a step is a CUDA graph; one that cannot be captured is launched as it is, which is said.
    """
    weight = next(next(iter(models.values())).parameters())
    watch = clock(weight.device)
    tokens = torch.zeros(batch, length, dtype=torch.int64, device=weight.device)
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    prefill = {name: _prefill(model, tokens) for name, model in models.items()}
    for name, times in interleaved(prefill, watch, SECONDS).items():
        found[name]["prefill_ms"] = 1000 * times.median
    decode = {name: _decode(name, model, tokens, say) for name, model in models.items()}
    for name, times in interleaved(decode, watch, SECONDS).items():
        found[name]["decode_ms"] = 1000 * times.median
    return found


def _prefill(model: BuiltModel, tokens: torch.Tensor) -> Any:
    return lambda: model.model(*_packed(model, tokens))


def _packed(model: Any, tokens: torch.Tensor) -> tuple[Any, Any]:
    from attnc.tune.probes import new_call_of

    call, packed = new_call_of(model, tokens)
    return packed, call


def _decode(name: str, model: BuiltModel, tokens: torch.Tensor, say: Say) -> Callable[[], object]:
    """A step; without a graph the cache grows by one token each time, which is little beside `length`."""
    cache = model.new_cache(tokens.shape[0], tokens.shape[1] + STEPS)
    nothing = torch.zeros(0, dtype=torch.int64, device=tokens.device)
    model(tokens, cache=cache, at=nothing)
    last = tokens[:, :1].clone()

    def step() -> object:
        return model(last, cache=cache)

    if tokens.device.type != "cuda":
        return step
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    before = cache.lengths
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        say(f"decode steps of {name} are launched one by one: {str(error).splitlines()[0]}")
        return step
    return partial(_replayed, graph, step, before)


def _replayed(graph: torch.cuda.CUDAGraph, *_alive: object) -> None:
    """The step once more; a graph reads addresses, so what it was captured with, the lengths before it too, stays with it."""
    graph.replay()


def interpolated(points: Mapping[int, float], length: int) -> float | None:
    """A cost at a length between two that were measured, on the line between them; None beyond all."""
    if length in points:
        return points[length]
    below, above = [one for one in points if one < length], [one for one in points if one > length]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    share = (length - low) / (high - low)
    return points[low] + share * (points[high] - points[low])


def measured_rows(rows: Mapping[Key, Row], machine: str, batch: int) -> dict[str, dict[str, dict[int, float]]]:
    """Candidate -> objective -> length -> milliseconds, on one machine."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows.values():
        if row.what == "cost" and row.machine == machine and row.batch == batch:
            for what, value in row.values.items():
                found.setdefault(row.candidate, {}).setdefault(what, {})[row.length] = value
    return found
