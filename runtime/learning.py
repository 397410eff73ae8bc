"""One launch of fast weights: what tokens bring, what decoding keeps of it, who runs it when, and whether it diverges.

Legend: T new tokens of S sequences; H heads with a net each; D, E widths of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .autocast import cast, enabled, off, word
from .batch import Batch
from .call import Call
from .chunks import Chunks
from .fast import Learned, Lessons, Rule, Stream, Teach, Weights, start_of
from .fast_step import Stepping
from .nets import forward, plain
from .storage import LayerCache

Formula = Callable[..., tuple[Tensor, Weights, Weights]]
"""A reference: q, k, v, rates of one sequence, start, rule, norm, weights and moment -> (o, weights, moment)."""

RATES = ("lr", "momentum", "decay")


class DivergedError(RuntimeError):
    """A551: fast weights or what they returned are no numbers any more: their rates let them grow without end."""

    code = "A551"


class Net(nn.Module):
    """The weights of a net as every text begins with them, name -> [H, outputs, inputs]."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(*shape)))

    def forward(self) -> Weights:
        """In order."""
        return dict(self.named_parameters(recurse=False))


class HeadNorm(nn.Module):
    """Weight and bias [H, E] of a layer norm of each head."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(heads, width)), nn.Parameter(torch.zeros(heads, width))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.weight, self.bias


def reference_teach(formula: Formula) -> Teach:
    """The provider `reference`: the formula, one sequence after another; in fp32, in float64 where q is."""

    def teach(rule: Rule, lessons: Lessons, before: Learned, stream: Stream) -> tuple[Tensor, Learned]:
        dtype, sizes = torch.promote_types(lessons.q.dtype, torch.float32), list(stream.batch.sizes)
        with torch.inference_mode(False):  # gradients are taken in any mode

            def wide(x: Tensor) -> Tensor:
                return x.clone().to(dtype) if x.is_inference() else x.to(dtype)

            k, v = (wide(x).repeat_interleave(lessons.heads // x.shape[1], dim=1) for x in (lessons.k, lessons.v))
            spots = stream.spots.clone()
            q = k.new_zeros(k.shape).index_copy(0, spots, wide(lessons.q))
            rates = [
                k.new_full(k.shape[:2], none) if rate is None else wide(rate).expand(k.shape[:2])
                for rate, none in zip(lessons.rates, (1.0, 0.0, 0.0), strict=True)
            ]
            start = {name: wide(w) for name, w in lessons.start.items()}
            norm = None if lessons.norm is None else [wide(one) for one in lessons.norm]
            found, begun = [], before.mapped(wide)
            texts = zip(*(torch.split(x, sizes) for x in (q, k, v, *rates)), strict=True)
            for s, (q_s, k_s, v_s, *rates_s) in enumerate(texts):
                own = begun.mapped(lambda w, s=s: w[s])  # type: ignore[misc]
                found.append(formula(q_s, k_s, v_s, rates_s, start, rule, norm, own.weights, own.moment))
            after = [Learned(weights, moment if rule.momentum else None) for _, weights, moment in found]
            return torch.cat([o for o, _, _ in found])[spots], Learned.of(after, lambda *parts: torch.stack(parts))

    return teach


class FastWeights:
    """q [T, H, D], k and v [T, a divisor of H, D or E] with rates -> o [T, H, E]. `providers`: who runs it in each phase."""

    causal = True

    def __init__(self, name: str, rule: Rule, *, formula: Formula) -> None:
        self.name, self.rule, self.reference = name, rule, reference_teach(formula)
        self.providers: dict[str, Teach] = {}

    def prepare(self, device: torch.device) -> None:
        """Nothing is made ahead."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        start: Weights,
        call: Call,
        slot: int,
        *,
        norm: tuple[Tensor, Tensor] | None = None,
        lr: Tensor | float | None = None,
        momentum: Tensor | float | None = None,
        decay: Tensor | float | None = None,
    ) -> Tensor:
        """Reads what the batch's sequences have learned, runs the phase's provider, stores what they know after.

        start: the net's weights, name -> [H, outputs, inputs]; rates [T, H], [H] or numbers, 0..1. Raises ValueError, naming
        the argument, for shapes and dtypes that do not fit and for a cache of another model. Whether numbers stay finite is
        asked at the end of the call (`diverged`).
        """
        batch, cache, rule = call.batch, call.slot(slot), self.rule
        if enabled(q):
            q, k, v = cast(q, k, v)
        wide = torch.promote_types(q.dtype, torch.float32)
        given = [None if r is None else torch.as_tensor(r, dtype=wide, device=q.device) for r in (lr, momentum, decay)]
        rates = {name: None if r is None else r.expand(q.shape[1]) if r.dim() == 0 else r for name, r in zip(RATES, given)}  # noqa: B905
        check(q, k, v, rates, start)
        if not batch.tokens:
            return v.new_zeros(0, q.shape[1], v.shape[2])
        provider = self.providers[batch.phase]
        if cache is not None:
            check_cache(cache, start, rule)
        if isinstance(provider, Stepping) and cache is not None and cache.direct and batch.max_new == 1:
            lessons = Lessons(q, k, v, (rates["lr"], rates["momentum"], rates["decay"]), start, norm)
            o = provider.step(lessons, cache, batch, rule)
            call.alarms.append((self, o, []))
            return o
        stream = Stream.of(batch, rule.chunk)
        gates = [name for name, rate in rates.items() if rate is not None and rate.dim() == 2]
        if cache is not None and rule.chunk > 1:
            k, v = (stream.joined(cache.state(x, batch), y) for x, y in (("k", k), ("v", v)))
            for at, name in enumerate(gates):
                rates[name] = stream.joined(cache.state("gates", batch)[:, at], rates[name])  # type: ignore[arg-type]
        lessons = Lessons(q, k, v, (rates["lr"], rates["momentum"], rates["decay"]), start, norm, keep=cache is not None)
        with off(q) if enabled(q) else nullcontext():
            before = self._before(lessons, batch, cache)
            o, after = provider(rule, lessons, before, stream)
        o = o.to(q.dtype)
        if not torch.compiler.is_compiling():
            call.alarms.append((self, o.detach(), [w.detach() for w in after.weights.values()]))
        if cache is not None:
            self._store(after, [rates[name] for name in gates], lessons, stream, cache)
        return o

    def read(self, q: Tensor, weights: Weights, batch: Batch, norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What the nets of weights, name -> [S, H, outputs, inputs], return for q [T, H, D], [T, H, E]; nothing is learned."""
        if not batch.tokens:
            return q.new_zeros(0, q.shape[1], list(weights.values())[-1].shape[-2])
        wide = next(iter(weights.values())).dtype
        own = None if norm is None else (norm[0].to(wide), norm[1].to(wide))
        with off(q) if enabled(q) else nullcontext():
            chunks = Chunks.of(batch, batch.max_new)
            (count,) = chunks.counts
            known = {name: chunks.sorted(w)[:count] for name, w in weights.items()}
            rows = forward(tuple(known), plain(known), chunks.rows(q.to(wide)), self.rule, own)
            return chunks.tokens_of(rows).to(q.dtype)

    def _before(self, lessons: Lessons, batch: Batch, cache: LayerCache | None) -> Learned:
        """What sequences have learned; one without a whole chunk knows what all begin with."""
        begun = start_of(lessons, self.rule, batch.sequences)
        if cache is None or batch.max_past == 0:
            return begun
        old = (batch.past >= self.rule.chunk).view(-1, 1, 1, 1)

        def of(kind: str, first: Weights) -> Weights:
            return {name: torch.where(old, cache.state(f"{kind}.{name}", batch).to(w.dtype), w) for name, w in first.items()}

        return Learned(of("weight", begun.weights), None if begun.moment is None else of("momentum", begun.moment))

    def _store(self, after: Learned, gates: list[Any], lessons: Lessons, stream: Stream, cache: LayerCache) -> None:
        batch, chunk = stream.new, self.rule.chunk
        for kind, found in (("weight", after.weights), ("momentum", after.moment or {})):
            for name, w in found.items():
                cache.set_state(f"{kind}.{name}", w, batch)
        if chunk == 1:
            return
        cache.set_state("k", stream.rest(lessons.k, chunk), batch)
        cache.set_state("v", stream.rest(lessons.v, chunk), batch)
        if gates:
            cache.set_state("gates", torch.stack([stream.rest(gate, chunk) for gate in gates], dim=1), batch)


def check(q: Tensor, k: Tensor, v: Tensor, rates: Mapping[str, Tensor | None], start: Weights) -> None:
    """Raises ValueError, naming the argument, where tensors do not fit each other; rates are looked at on a CPU alone, since a
    GPU would have to be waited for.
    """
    tokens, heads, width = q.shape
    for name, x, columns in (("k", k, width), ("v", v, v.shape[-1])):
        if x.dim() != 3 or x.shape[0] != tokens or x.shape[2] != columns or heads % x.shape[1]:
            raise ValueError(f"{name} is [{tokens}, a divisor of {heads}, {columns}], got {list(x.shape)}")
        if x.dtype != q.dtype:
            raise ValueError(f"q, k and v have one dtype, or torch.autocast: {name} is {word(x.dtype)}, q {word(q.dtype)}")
    first, last = next(iter(start.values())), list(start.values())[-1]
    if (first.shape[0], first.shape[2], last.shape[1]) != (heads, width, v.shape[2]):
        shown = f"[{heads}, ..., {width}] to [{heads}, {v.shape[2]}, ...]"
        raise ValueError(f"start goes from {shown}, got {list(first.shape)} and {list(last.shape)}")
    for name, rate in rates.items():
        if rate is None:
            continue
        if tuple(rate.shape) not in ((heads,), (tokens, heads)):
            raise ValueError(f"{name} is [{heads}] or [{tokens}, {heads}], got {list(rate.shape)}")
        if rate.device.type == "cpu" and not torch.compiler.is_compiling() and rate.numel():
            least, most = (float(x) for x in torch.aminmax(rate.detach()))
            if not (least >= 0 and most <= 1):
                raise ValueError(f"{name} is a rate of 0..1, got {least:g}..{most:g}")


def check_cache(cache: LayerCache, start: Weights, rule: Rule) -> None:
    """Raises ValueError where a cache keeps no such net."""
    for name, w in start.items():
        for kind in ("weight", *(("momentum",) if rule.momentum else ())):
            held = cache.states.get(f"{kind}.{name}")
            if held is None or held.shape[1:] != w.shape:
                got = "nothing" if held is None else str(list(held.shape[1:]))
                raise ValueError(f"the cache is of another model: {kind}.{name} is {list(w.shape)}, it keeps {got}")
    held = cache.states.get("k")
    if rule.chunk > 1 and (held is None or held.shape[1] != rule.chunk - 1):
        raise ValueError(f"the cache is of another model: it does not keep the {rule.chunk - 1} tokens of an unfinished chunk")


def diverged(model: nn.Module, call: Call) -> None:
    """Raises `DivergedError` A551 where fast weights or what they returned are not finite, with layer, sequence and token.

    One wait for a GPU a call, and one reading of outputs and weights; none for models without fast weights, while a CUDA graph
    is captured, and in a compiled model.
    """
    if not call.alarms or (call.batch.offsets.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    sound = [torch.stack([x.isfinite().all() for x in (o, *weights)]).all() for _, o, weights in call.alarms]
    if bool(torch.stack(sound).all()):
        return
    launch, o, weights = next(alarm for alarm, good in zip(call.alarms, sound, strict=True) if not bool(good))
    layer = next(name for name, module in model.named_modules() if getattr(module, "scan", None) is launch)
    bad = (~o.isfinite().flatten(1).all(1)).nonzero()
    if len(bad):
        token = int(bad[0])
        sequence = int(call.batch.sequence[token])
        where = f"token {int(call.batch.positions[token])}"
    else:
        finite = torch.stack([w.isfinite().flatten(1).all(1) for w in weights]).all(0)
        sequence = int((~finite).nonzero()[0])
        seen = call.batch.pasts[sequence] + call.batch.sizes[sequence]
        where = f"the last whole chunk before token {seen}"
    rates = "lower `lr`, normalise keys (`qk_norm = l2`), or let weights decay"
    raise DivergedError(f"A551: the fast weights of {layer} are no numbers any more by {where} of sequence {sequence}: {rates}")
