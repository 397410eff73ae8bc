"""Text from a model: the prompt in one call or in chunks, then one token of every sequence a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from .cache import Cache
from .output import Output
from .sampling import Sampler


class Generates(Protocol):
    """What `generate` needs of a model."""

    def __call__(
        self,
        inputs: Tensor,
        cache: Cache | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        total_lengths: Tensor | Sequence[int] | int | None = None,
        at: Tensor | None = None,
    ) -> Output:
        """tokens [B, N], left-padded where `lengths` says so -> logits [B, N, vocabulary], or [P, vocabulary] `at` P places."""
        ...

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache."""
        ...


@dataclass
class Speed:
    """Filled while generating: tokens (of all sequences) and seconds, of the prompt and of what followed."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, the first (which the prompt's call yields) not counted; 0 before there are two."""
        return self.new_tokens / self.new_seconds if self.new_seconds > 0 else 0.0


@torch.no_grad()
def generate(
    model: Generates,
    tokens: Tensor,
    max_new: int,
    sampler: Sampler | None = None,
    *,
    lengths: Sequence[int] | None = None,
    stop: Sequence[int] = (),
    chunk: int | None = None,
    speed: Speed | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of each sequence, [B] int64, up to `max_new` times, until every sequence has drawn one of `stop`.

    tokens [B, N], left-padded if `lengths` [B] is given. A sequence that has stopped repeats its stop token. `chunk`: prompt
    tokens a call, at most; None: all. ValueError if a prompt is empty: nothing follows from nothing.
    """
    sampler = sampler or Sampler()
    sizes = [tokens.shape[1]] * tokens.shape[0] if lengths is None else [int(n) for n in lengths]
    if not sizes or min(sizes) == 0:
        raise ValueError("every prompt needs at least one token")
    cache = model.new_cache(len(sizes), max(sizes) + max_new)
    generator = sampler.generator(tokens.device)
    clock = _Clock(speed or Speed(), tokens.device)
    logits = _prompt(model, tokens, sizes, cache, chunk or max(sizes))
    clock.prompt(sum(sizes))
    stops = torch.tensor(list(stop), dtype=torch.int64, device=tokens.device)
    stopped = torch.zeros(len(sizes), dtype=torch.bool, device=tokens.device)
    last = torch.zeros(len(sizes), dtype=torch.int64, device=tokens.device)
    for step in range(max_new):
        if step:
            logits = model(last.unsqueeze(1), cache).logits[:, -1]
        last = torch.where(stopped, last, sampler(logits, generator))
        stopped = stopped | torch.isin(last, stops)
        if step:
            clock.step(len(sizes))
        yield last
        clock.resume()
        if stop and bool(stopped.all()):
            return


def _prompt(model: Generates, tokens: Tensor, sizes: list[int], cache: Cache, chunk: int) -> Tensor:
    """The logits [B, vocabulary] after each prompt's last token. Left-padded rows all end in the last chunk."""
    places = tokens.shape[1]
    logits = tokens.new_zeros(0, dtype=torch.float32)
    starts = list(range(places - chunk, -chunk, -chunk))[::-1]
    for start in starts:
        low = max(start, 0)
        real = [min(size - (places - start - chunk), start + chunk - low) for size in sizes]
        width = start + chunk - low
        last = torch.arange(1, len(sizes) + 1, device=tokens.device) * width - 1
        part, lengths = tokens[:, low : low + width], _padded(real, width)
        logits = model(part, cache, lengths=lengths, total_lengths=sizes, at=last).logits
    return logits


def _padded(real: list[int], places: int) -> list[int] | None:
    """Lengths for a call, or None where no row is padded."""
    real = [max(size, 0) for size in real]
    return None if all(size == places for size in real) else real


class _Clock:
    """Adds to a `Speed`, without the time that the consumer of the tokens takes."""

    def __init__(self, speed: Speed, device: torch.device) -> None:
        self.speed, self.device = speed, device
        self.since = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def resume(self) -> None:
        self.since = self._now()

    def prompt(self, tokens: int) -> None:
        self.speed.prompt_tokens += tokens
        self.speed.prompt_seconds += self._now() - self.since
        self.resume()

    def step(self, tokens: int) -> None:
        self.speed.new_tokens += tokens
        self.speed.new_seconds += self._now() - self.since
