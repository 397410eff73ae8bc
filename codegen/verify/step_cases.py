"""Single steps of fast weights to compare kernels on: what nets return, and what a cache keeps, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from attnc.codegen.verify.cases import poisoned
from attnc.codegen.verify.net_cases import part, rates
from attnc.codegen.verify.net_roundings import Draws, Errors, Expected, Found, measure_of, rms
from attnc.compiler.families import FastWeights as Family
from attnc.runtime.batch import Batch
from attnc.runtime.cache import Cache
from attnc.runtime.call import Call
from attnc.runtime.fast import Rule, Teach
from attnc.runtime.fast_step import Given, Stepping, step_kernels
from attnc.runtime.fast_torch import torch_teach
from attnc.runtime.learning import FastWeights
from attnc.runtime.storage import LayerPlan, State


@dataclass(frozen=True)
class Steps:
    """Two sequences, the second of one token fewer: a first call of `begun` tokens, then `count` tokens one by one."""

    family: Family
    chunk: int = 5
    begun: int = 3
    count: int = 9
    heads: int = 2
    k_heads: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def rule(self) -> Rule:
        """How its nets learn."""
        family = self.family
        return Rule(
            self.chunk,
            gated=family.gated,
            momentum=family.momentum != "none",
            after_write=family.after_write,
            weight_norm=family.weight_norm,
            residual=family.residual,
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of a net's maps."""
        family = self.family
        inward, outward = (family.hidden, family.key_width), (family.value_width, family.hidden)
        if family.gated:
            found = {"gate": inward, "up": inward, "down": outward}
        elif family.depth == 2:
            found = {"map_0": inward, "map_1": outward}
        else:
            found = {"map_0": (family.value_width, family.key_width)}
        return {name: (self.heads, *shape) for name, shape in found.items()}

    @property
    def gates(self) -> list[str]:
        """The rates that are gates of the token."""
        return [name for name in rates(self.family, self.chunk) if getattr(self.family, name) == "token"]

    def cache(self, dtype: torch.dtype) -> Cache:
        """An empty one."""
        wide, family, rows = torch.promote_types(dtype, torch.float32), self.family, self.chunk - 1
        kinds = ("weight", *(("momentum",) if self.rule.momentum else ()))
        states = [State(f"{kind}.{name}", shape, wide) for kind in kinds for name, shape in self.shapes.items()]
        if rows:
            states.append(State("k", (rows, self.k_heads, family.key_width)))
            states.append(State("v", (rows, self.heads, family.value_width)))
            states += [State("gates", (len(self.gates), rows, self.heads), wide)] if self.gates else []
        return Cache([LayerPlan(states=tuple(states))], 2, self.begun + self.count, dtype, self.device)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """New tokens of both sequences in each call."""
        yield self.begun, self.begun - 1
        for _ in range(self.count):
            yield 1, 1


def drawn(case: Steps, seed: int) -> tuple[Found, list[Found]]:
    """(what belongs to heads, what each call brings), in float64, of numbers that the case's dtypes hold; keys of length 1."""
    family, make = case.family, torch.Generator().manual_seed(seed)
    most = rates(family, case.chunk)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    fixed = {f"start.{name}": normal(*shape) / shape[2] ** 0.5 for name, shape in case.shapes.items()}
    if family.norm:
        fixed |= {"weight": 1 + normal(case.heads, family.value_width) / 4, "bias": normal(case.heads, family.value_width)}
    for name in most:
        if getattr(family, name) in ("head", "number"):
            fixed[name] = most[name] * part(torch.rand(case.heads, generator=make))
    calls = []
    for sizes in case.sizes():
        keys = normal(sum(sizes), case.k_heads, family.key_width)
        one = {"q": normal(sum(sizes), case.heads, family.key_width), "k": keys / keys.norm(dim=-1, keepdim=True)}
        one["v"] = normal(sum(sizes), case.heads, family.value_width)
        one |= {name: most[name] * part(torch.rand(sum(sizes), case.heads, generator=make)) for name in case.gates}
        calls.append({name: x.to(case.dtype if name in ("q", "k", "v") else torch.float32).double() for name, x in one.items()})
    return {name: x.to(case.dtype if name.startswith("start") else torch.float32).double() for name, x in fixed.items()}, calls


def run(case: Steps, teach: Teach, fixed: Found, calls: list[Found], dtype: torch.dtype) -> Found:
    """What nets return in each call, and the states after the last; q, k, v and the first weights in `dtype`."""
    wide, cache = torch.promote_types(dtype, torch.float32), case.cache(dtype)
    launch = FastWeights("steps", case.rule, formula=lambda *_: None)  # type: ignore[arg-type]
    launch.providers = {"prefill": torch_teach, "decode": teach}

    def given(name: str, x: Tensor) -> Tensor:
        return x.to(case.device, dtype if name in ("q", "k", "v") or name.startswith("start") else wide)

    own = {name: given(name, x) for name, x in fixed.items()}
    start = {name: own[f"start.{name}"] for name in case.shapes}
    norm = (own["weight"], own["bias"]) if case.family.norm else None
    shared = {name: x for name, x in own.items() if name in ("lr", "momentum", "decay")}
    outputs = []
    for sizes, brought in zip(case.sizes(), calls, strict=True):
        cache.reserve(sizes)
        places = torch.zeros(1, sum(sizes), dtype=torch.int64, device=case.device)
        _, batch = Batch.of(places, cache, offsets=[0, sizes[0], sum(sizes)])
        new = {name: given(name, x) for name, x in brought.items()}
        q, k, v = (new.pop(name) for name in ("q", "k", "v"))
        with torch.no_grad():
            outputs.append(launch(q, k, v, start, Call(batch, cache), 0, norm=norm, **shared, **new))
        cache.advance(batch)
    states = {name: x for name, x in cache.layer(0).states.items() if name not in ("k", "v", "gates")}
    return {"o": torch.cat(outputs)} | states


def expected(case: Steps) -> Draws:
    """As `expected` of net_cases.py."""

    def of(draw: int) -> Expected:
        given = drawn(case, draw)
        want = run(case, torch_teach, *given, torch.float64)
        plain = run(case, measure_of(case.dtype), *given, case.dtype)
        return Expected(given, want, {name: rms(plain[name], x) for name, x in want.items()})

    return Draws(of)


def compared(case: Steps, module: ModuleType, wanted: Draws | None = None) -> Errors:
    """(error, the measure's), by the name of a result."""
    stepping = Stepping(torch_teach, step_kernels(module))

    def tried(given: tuple[Found, list[Found]]) -> Found:
        with poisoned():
            return run(case, stepping, *given, case.dtype)

    return (wanted or expected(case)).compared(tried)


def one_step(family: Family, sequences: int, heads: int, size: int, dtype: torch.dtype, device: str) -> Given:
    """What a kernel file reads of a token of each sequence, after which a chunk of `size` is whole."""
    case = Steps(family, size, heads=heads, dtype=dtype, device=device)
    make = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        found: Tensor = torch.randn(*shape, generator=make, device=device) / shape[-1] ** 0.5
        return found

    def rate(form: str) -> Tensor | None:
        shape = (sequences, heads) if form == "token" else (heads,)
        return None if form == "none" else torch.full(shape, 0.05, device=device)

    q, k = (drawn(sequences, heads, family.key_width).to(dtype) for _ in range(2))
    v = drawn(sequences, heads, family.value_width).to(dtype)
    weights = tuple(drawn(sequences, *shape) for shape in case.shapes.values())
    ones = torch.ones(heads, family.value_width, device=device)
    rows = torch.arange(sequences + 1, device=device)
    return Given(
        q=q,
        k=k,
        v=v,
        rates=tuple(rate(form) for form in (family.lr, family.momentum, family.decay)),
        norm=(ones, ones) if family.norm else (None, None),
        weights=weights,
        moments=tuple(torch.zeros_like(w) for w in weights) if case.rule.momentum else (),
        starts=tuple(w[0].to(dtype) for w in weights),
        held_k=torch.zeros(sequences, size - 1, *k.shape[1:], dtype=dtype, device=device),
        held_v=torch.zeros(sequences, size - 1, *v.shape[1:], dtype=dtype, device=device),
        gates=torch.zeros(sequences, max(len(case.gates), 1), size - 1, heads, device=device),
        places=rows[:-1],
        offsets=rows,
        past=torch.full((sequences,), 5 * size - 1, device=device),
        size=size,
    )
