"""Built models side by side with the oracle of dense.py: every way to run the same texts, and what rounding allows.

Errors are root mean squares over all logits. In float32 a model may be off by 1.5 times what the oracle's own float32 run is
off by. That run also tells how far rounding goes in float64: every rounding error is a multiple of the unit roundoff, 2^-24
and 2^-53, so the same formulas in float64 are off by 2^-29 times as much, and two runs apart by (1 + 1.5) times that. Where
few roundings outweigh all others, one draw of texts says little: a model that is further off on one is asked of DRAWS, the
squares of which are averaged on both sides.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dense
import torch
from dense import Step

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import graph, passes
from attnc.compiler.cache_spec import CacheRow, cache_bytes, cache_spec
from attnc.compiler.data import from_data
from attnc.compiler.laws import owed
from attnc.compiler.parameters import parameters
from attnc.compiler.spec import Spec

FLOAT32 = 1.5
FLOAT64 = (1 + FLOAT32) * 2.0**-29
DRAWS = 3
WAYS = ("torch", "reference")
PROMPT = 5
"""Tokens before decoding begins: few, so that rings turn."""


@contextmanager
def poisoned() -> Iterator[None]:
    """What `torch.empty` and the like return is NaN, so that numbers nobody wrote are seen."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(make)
        def made(*args, **options):
            empty = make(*args, **options)
            return empty.fill_(float("nan")) if empty.is_floating_point() and not empty.is_meta else empty

        return made

    places = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    before = [getattr(place, name) for place, name in places]
    for (place, name), make in zip(places, before, strict=True):
        setattr(place, name, poison(make))
    try:
        yield
    finally:
        for (place, name), make in zip(places, before, strict=True):
            setattr(place, name, make)


def made(spec: Spec, folder: Path) -> torch.nn.Module:
    """The spec's model, built, loaded in float64, with weights that make scores and outputs of about 1."""
    build(spec, folder, Options(seed=0))
    model = attnc.load(folder, dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else parameter + 0.3 * noise)
    return model


def rms(x: torch.Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def mean_square(numbers: tuple[float, ...]) -> float:
    return sum(number**2 for number in numbers) / len(numbers)


@dataclass
class Case:
    """A spec, its model, and some texts [S, N] of equal length with what the oracle makes of them."""

    spec: Spec
    model: torch.nn.Module
    texts: torch.Tensor
    known: dict[tuple, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec, folder: Path, tokens: int = 40, texts: int = 2) -> Case:
        generator = torch.Generator().manual_seed(1)
        return cls(spec, made(spec, folder), torch.randint(0, spec.model.vocab, (texts, tokens), generator=generator))

    @functools.cached_property
    def laws(self) -> frozenset[str]:
        return owed(self.spec)

    def oracle(self, text: int, steps: tuple[Step, ...]) -> torch.Tensor:
        """What the oracle says in float64; one run for all ways where the spec owes that they agree."""
        if {"decode", "chunked", "prefix"} <= self.laws:
            return self._run(text, self._training, torch.float64)[: sum(step.tokens for step in steps)]
        return self._run(text, steps, torch.float64)

    @property
    def _training(self) -> tuple[Step, ...]:
        n = self.texts.shape[1]
        return (Step(n, "train", n),)

    @functools.cached_property
    def rounding(self) -> float:
        """What the oracle's own float32 run is off by, reading the texts in one call each."""
        apart = [
            self._run(text, self._training, torch.float32) - self._run(text, self._training, torch.float64)
            for text in range(len(self.texts))
        ]
        return rms(torch.cat(apart))

    def _run(self, text: int, steps: tuple[Step, ...], dtype: torch.dtype) -> torch.Tensor:
        key = (text, steps, dtype)
        if key not in self.known:
            tokens = self.texts[text, : sum(step.tokens for step in steps)]
            self.known[key] = dense.logits(self.spec, dict(self.model.state_dict()), tokens, steps, dtype)
        return self.known[key]

    def ways(self) -> dict[str, Callable]:
        """Every way to run the texts that the spec allows: name -> (model, texts) -> [(text, its steps, its logits)]."""
        always = {"training": training, "prefill": prefill, "packed": packed, "padded": padded}
        cached = {"chunks": chunks, "decode": decode, "decode by 16": decode_by_sixteen, "padded decode": padded_decode}
        return always if "causal" not in self.laws else {**always, **cached}

    def check(self, model: torch.nn.Module, ways: tuple[str, ...] = (), allowed: float = FLOAT64) -> None:
        """Asserts that every way gives the oracle's float64 logits, off by `allowed` times the oracle's own float32 error."""
        for name, way in self.ways().items():
            if ways and name not in ways:
                continue
            error, limit = self.error(model, way), allowed * self.rounding
            if not error <= limit:
                errors, roundings = zip(*((one.error(model, way), one.rounding) for one in self.draws), strict=True)
                error, limit = mean_square(errors) ** 0.5, allowed * mean_square(roundings) ** 0.5
            assert error <= limit, f"{name}: off by {error:.3g}, allowed is {limit:.3g}\n{self.spec.text}"

    def error(self, model: torch.nn.Module, way: Callable) -> float:
        """How far a model that is run so is off the oracle in float64."""
        with poisoned():
            found = way(model, self.texts)
        return rms(torch.cat([logits - self.oracle(text, steps) for text, steps, logits in found]))

    @functools.cached_property
    def draws(self) -> tuple[Case, ...]:
        """This case and the same on other texts of the same length."""
        generator = torch.Generator().manual_seed(2)
        others = [torch.randint(0, self.spec.model.vocab, self.texts.shape, generator=generator) for _ in range(DRAWS - 1)]
        return (self, *(Case(self.spec, self.model, texts) for texts in others))

    def check_sizes(self) -> None:
        """The tensors and the cache are what the compiler foretold of them, without torch."""
        foretold = {one.name: one.shape for one in parameters(self.spec, passes.run(graph.build(self.spec)))}
        assert {name: tuple(one.shape) for name, one in self.model.named_parameters()} == foretold, self.spec.text
        if "causal" in self.laws:
            for tokens in (1, 50):
                cache = self.model.new_cache(1, tokens)
                assert cache.bytes() == cache_bytes(self.spec, tokens, "float64"), self.spec.text
            rows = [from_data(CacheRow, row) for row in self.model.cache_spec()]
            assert rows == list(cache_spec(self.spec, "float64")), self.spec.text

    def narrow(self) -> torch.nn.Module:
        """The same model in float32."""
        return copy.deepcopy(self.model).float()


# ---- ways to run texts [S, N]; each returns (text, steps, logits) for every text ------------------------------------------


def training(model, texts):
    n = texts.shape[1]
    logits = model(texts).logits
    assert logits.requires_grad, "training has gradients"
    return [(s, (Step(n, "train", n),), row.detach()) for s, row in enumerate(logits)]


def prefill(model, texts):
    """With a cache, unless the model looks ahead: then no later call could be right, and there is none."""
    n = texts.shape[1]
    with torch.no_grad():
        logits = model(texts, cache=model.new_cache(len(texts), n) if model.causal else None).logits
    return [(s, (Step(n, "prefill", n),), row) for s, row in enumerate(logits)]


def chunks(model, texts):
    """A prompt in four chunks, one of them so short that without `total_lengths` it would be a decode step."""
    n = texts.shape[1]
    sizes = (3, n // 2, 1, n - n // 2 - 4)
    cache, steps = model.new_cache(len(texts), n), tuple(Step(size, "prefill", n) for size in sizes)
    found = [model(part, cache=cache, total_lengths=n).logits for part in texts.split(sizes, dim=1)]
    return [(s, steps, row) for s, row in enumerate(torch.cat(found, dim=1))]


def decode(model, texts):
    return decoded(model, texts, (1,) * (texts.shape[1] - PROMPT))


def decode_by_sixteen(model, texts):
    rest = texts.shape[1] - PROMPT
    return decoded(model, texts, (2, *(16,) * ((rest - 2) // 16), (rest - 2) % 16 or 1)[: 2 + (rest - 2) // 16])


def decoded(model, texts, sizes):
    """A prompt, then calls of `sizes` tokens."""
    n = PROMPT + sum(sizes)
    cache, seen = model.new_cache(len(texts), n), PROMPT
    found, steps = [model(texts[:, :PROMPT], cache=cache).logits], [Step(PROMPT, "prefill", PROMPT)]
    for size in sizes:
        found.append(model(texts[:, seen : seen + size], cache=cache).logits)
        seen += size
        steps.append(Step(size, "decode", seen))
    return [(s, tuple(steps), row) for s, row in enumerate(torch.cat(found, dim=1))]


def uneven(texts):
    """Prefixes of the texts, each shorter than the one before."""
    return [texts.shape[1] - 7 * s for s in range(len(texts))]


def left_padded(texts, lengths):
    """[S, N]: each row's last places hold its first `length` tokens; what stands before is no token of its text."""
    rows = [torch.cat((text.flip(0)[: len(text) - n], text[:n])) for text, n in zip(texts, lengths, strict=True)]
    return torch.stack(rows)


def padded(model, texts):
    lengths = uneven(texts)
    logits = model(left_padded(texts, lengths), lengths=lengths).logits.detach()
    assert all(not row[: len(row) - n].any() for row, n in zip(logits, lengths, strict=True)), "padding gives zeros"
    return [(s, (Step(n, "train", n),), logits[s, logits.shape[1] - n :]) for s, n in enumerate(lengths)]


def padded_decode(model, texts):
    """Rows of different lengths in one prefill, then decode steps, each row from its own place on."""
    more = 6
    lengths = [n - more for n in uneven(texts)]
    longest = max(lengths)
    cache = model.new_cache(len(texts), texts.shape[1])
    first = model(left_padded(texts[:, :longest], lengths), cache=cache, lengths=lengths).logits
    found = [[row[longest - n :]] for row, n in zip(first, lengths, strict=True)]
    for step in range(more):
        new = torch.stack([text[n + step] for text, n in zip(texts, lengths, strict=True)])
        for row, logits in zip(found, model(new[:, None], cache=cache).logits, strict=True):
            row.append(logits)
    steps = [(Step(n, "prefill", n), *(Step(1, "decode", n + step + 1) for step in range(more))) for n in lengths]
    return [(s, steps[s], torch.cat(row)) for s, row in enumerate(found)]


def packed(model, texts):
    """Texts of different lengths in one row, in prefill and then one more token of each."""
    lengths = [n - 1 for n in uneven(texts)]
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    row = torch.cat([text[:n] for text, n in zip(texts, lengths, strict=True)])
    logits = model(row[None], offsets=offsets).logits.detach()[0].split(lengths)
    return [(s, (Step(n, "train", n),), part) for (s, n), part in zip(enumerate(lengths), logits, strict=True)]
