"""What one candidate does to a model whose other units have full attention: the losses of a unit, in rising cost.

mass    1 minus the share of full attention's weight on the keys that the candidate shows
output  what the heads add to the layer's output, off by so much: norm of the difference over the norm of the whole
hidden  the last hidden state at the places that are asked: mean square of the difference
nll, kl the rise of the loss there, in nats, and how far the predictions moved

All candidates of a layer read what full attention hands it, so one pass of a model that has the candidate everywhere serves
every layer; then the layers above are run again, for all KV groups of a layer at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attnc.compiler.units import Unit
from attnc.tune.models import module_of
from attnc.tune.samples import Sample


@dataclass
class Seen:
    """What one pass left: by layer the residual stream before it and its mixer's input; by unit the values before o_proj and
    the output; the last hidden state.
    """

    streams: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    outputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    masses: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    handed: bool = False

    def take(self, other: Seen) -> None:
        """The units that another pass read."""
        for mine, its in ((self.heads, other.heads), (self.outputs, other.outputs), (self.masses, other.masses)):
            mine.update(its)


class Losses(NamedTuple):
    """Of the whole model on one text."""

    hidden: float
    nll: float
    kl: float


NOTHING = Losses(0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Probe:
    """A model, one text, and what the model makes of it.

    asked, targets  the places that are asked, and what comes after each
    states, words   what full attention has there: last hidden states, and predictions
    start           how far from these the model is: nothing where it is the one with full attention
    """

    model: Any
    sample: Sample
    seen: Seen
    asked: Tensor
    states: Tensor
    words: Tensor
    targets: Tensor
    start: Losses = NOTHING

    @classmethod
    def of(cls, model: Any, units: Sequence[Unit], sample: Sample, masses: bool) -> Probe:
        """Reads the text once, with full attention."""
        seen = read(model, units, sample, masses=masses)
        device = seen.hidden.device
        asked, targets = (torch.tensor(row, device=device) for row in (sample.asked, sample.targets))
        states = seen.hidden[asked]
        return cls(model, sample, seen, asked, states, predictions(model, states), targets)

    def around(self, model: Any, units: Sequence[Unit]) -> Probe:
        """Of another model, whose losses count from there on, by the distance from full attention still."""
        made = replace(self, model=model, seen=read(model, units, self.sample))
        return replace(made, start=made.losses(made.seen.hidden))

    def losses(self, hidden: Tensor) -> Losses:
        """How much farther from full attention a last hidden state [T, W] is than this model's."""
        states = hidden[self.asked]
        words = predictions(self.model, states)
        moved = (wide(states) - wide(self.states)).square().mean()
        nll = F.nll_loss(words, self.targets) - F.nll_loss(self.words, self.targets)
        kl = F.kl_div(words, self.words, log_target=True, reduction="batchmean")
        return Losses(*(float(one) - before for one, before in zip((moved, nll, kl), self.start, strict=True)))

    def above(self, unit: Unit, groups: Sequence[tuple[int, int]], other: Seen) -> list[Losses]:
        """The losses with each of some decisions of a unit by itself as `other` computed it: one pass of the layers from there
        on, in which the text stands once for each.
        """
        place, model = unit.place, self.model
        module = module_of(model, *place)
        with ExitStack() as hooks:
            if unit.per == "head":
                mine, its = self.seen.heads[place], other.heads[place]
                mixed = torch.cat([blended(mine, its, unit.kv_heads, *group) for group in groups])
                hooks.enter_context(hook(module.get_submodule("o_proj"), before=lambda _: mixed))
            else:
                hooks.enter_context(hook(module, after=lambda _: other.outputs[place]))
            start = 0 if self.seen.handed else unit.layer
            call, _ = new_call(model, self.sample, len(groups))
            stream = self.seen.streams[start].repeat(len(groups), 1)
            for layer in list(model.model.layers)[start:]:
                stream = layer(stream, call)
            hidden = model.model.norm(stream).unflatten(0, (len(groups), -1))
            return [self.losses(one) for one in hidden]

    def output(self, unit: Unit, first: int, last: int, other: Seen) -> float:
        """How far off the layer's output is, relatively."""
        place = unit.place
        whole = wide(self.seen.outputs[place])
        if unit.per != "head":
            return float((wide(other.outputs[place]) - whole).norm() / whole.norm().clamp_min(1e-30))
        mine = self.seen.heads[place]
        moved = blended(mine, other.heads[place], unit.kv_heads, first, last) - mine
        weight: Tensor = module_of(self.model, *place).get_submodule("o_proj").weight  # type: ignore[assignment]
        return float(wide(F.linear(moved, weight)).norm() / whole.norm().clamp_min(1e-30))

    def mass(self, unit: Unit, first: int, last: int, other: Seen, rows: int = 0) -> float:
        """The share of full attention's weight that is lost, in the queries from `rows` on."""
        full, shown = self.seen.masses[unit.place], other.masses[unit.place]
        ratio = full.shape[0] // unit.kv_heads
        here = slice(first * ratio, (last + 1) * ratio)
        kept = torch.exp(shown[here, rows:] - full[here, rows:])
        return float(1 - kept.clamp(max=1).mean())


def blended(mine: Tensor, other: Tensor, kv_heads: int, first: int, last: int) -> Tensor:
    """[T, heads * E] with the heads of KV groups first..last taken from the other."""
    width = mine.shape[-1] // kv_heads
    made = mine.clone()
    made[:, first * width : (last + 1) * width] = other[:, first * width : (last + 1) * width].to(mine.dtype)
    return made


def predictions(model: Any, states: Tensor) -> Tensor:
    """[n, W] -> [n, V], logarithms of probabilities."""
    return F.log_softmax(wide(model.logits(states)), dim=-1)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def read(model: Any, units: Sequence[Unit], sample: Sample, forced: Seen | None = None, *, masses: bool = False) -> Seen:
    """One pass over a text. `forced`: what the mixers of each layer read instead, so that errors do not add up.

    Of `masses`, the logarithm of each query's sum over what it sees is kept, [H, T] for each unit.
    """
    seen, sums = Seen(), dict[tuple[int, str], list[Tensor]]()
    with ExitStack() as hooks:
        for index, layer in enumerate(model.model.layers):
            hooks.enter_context(hook(layer, before=_kept(seen.streams, index)))
            mixer = module_of(model, index, "")
            hooks.enter_context(hook(mixer, before=_kept(seen.inputs, index, None if forced is None else forced.inputs[index])))
        for unit in units:
            module = module_of(model, *unit.place)
            hooks.enter_context(hook(module, after=_kept(seen.outputs, unit.place)))
            if unit.per == "head":
                hooks.enter_context(hook(module.get_submodule("o_proj"), before=_kept(seen.heads, unit.place)))
            if masses:
                hooks.enter_context(watching(module, _sums(sums.setdefault(unit.place, []))))
        call, tokens = new_call(model, sample)
        seen.hidden = model.model(tokens, call)
        seen.handed = bool(call.handed)
    seen.masses = {place: joined(rows, len(sample.tokens)) for place, rows in sums.items() if rows}
    return seen


def new_call(model: Any, sample: Sample, times: int = 1) -> tuple[Any, Tensor]:
    """(what the layers of one call share, tokens [times * T]) of one text, which stands there so many times."""
    weight: Tensor = model.model.embed_tokens.weight
    return new_call_of(model, torch.tensor([sample.tokens], device=weight.device).repeat(times, 1))


def new_call_of(model: Any, tokens: Tensor) -> tuple[Any, Tensor]:
    """(what the layers of one call share, packed tokens) by the model's own runtime, for tokens [B, N]."""
    runtime = f"{type(model).__module__.rpartition('.')[0]}.runtime"
    batches, calls = (importlib.import_module(f"{runtime}.{name}") for name in ("batch", "call"))
    packed, batch = batches.Batch.of(tokens, None, None, None, "prefill", None)
    return calls.Call(batch, None), packed


def _kept(store: dict[Any, Tensor], key: Any, instead: Tensor | None = None) -> Any:
    def keep(x: Tensor) -> Tensor | None:
        store[key] = x
        return instead

    return keep


class hook:  # noqa: N801 (reads as a function)
    """While it is open: `before` sees a module's input and `after` its output, and gives another one or None."""

    def __init__(self, module: torch.nn.Module, before: Any = None, after: Any = None) -> None:
        def first(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            made = before(inputs[0])
            return None if made is None else (made, *inputs[1:])

        if before is not None:
            self.handle = module.register_forward_pre_hook(first)
        else:
            self.handle = module.register_forward_hook(lambda _module, _inputs, output: after(output))

    def __enter__(self) -> None:
        """Hooked when made."""

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


class watching:  # noqa: N801 (reads as a function)
    """While it is open the launches of a part run on their references, and `see` gets each block of queries: logits and weights
    [heads, queries, keys], and which are visible. Blocks come by heads, then by queries.
    """

    def __init__(self, module: torch.nn.Module, see: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        self.before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.see = see
        for mix in getattr(module, "mixes", ()):
            for table in (mix.providers, mix.choosing):
                self.before.append((table, dict(table)))
                table["prefill"] = self.provider(mix.reference)

    def provider(self, reference: Any) -> Any:
        """The reference, seen at work."""

        def weights(logits: Tensor, visible: Tensor, sink_logit: Tensor | None) -> Tensor:
            made: Tensor = reference.weights(logits, visible, sink_logit)
            self.see(logits, visible, made)
            return made

        return replace(reference, weights=weights)

    def __enter__(self) -> None:
        """Taken over when made."""

    def __exit__(self, *_: object) -> None:
        for table, providers in self.before:
            table.clear()
            table.update(providers)


def joined(blocks: Sequence[Tensor], tokens: int) -> Tensor:
    """Blocks [heads, queries, ...] of one sequence, by heads and then queries -> [H, T, ...]."""
    rows, waiting = [], []
    for block in blocks:
        waiting.append(block)
        if sum(one.shape[1] for one in waiting) == tokens:
            rows.append(torch.cat(waiting, dim=1))
            waiting = []
    assert not waiting, "blocks of queries cover each sequence"
    return torch.cat(rows)


def _sums(rows: list[Tensor]) -> Callable[[Tensor, Tensor, Tensor], None]:
    def see(logits: Tensor, visible: Tensor, _: Tensor) -> None:
        rows.append(logits.masked_fill(~visible, float("-inf")).logsumexp(-1))

    return see
