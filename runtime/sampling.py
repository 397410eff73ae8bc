"""How the next token is drawn from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """temperature 0 takes the likeliest token. Otherwise from the softmax of logits / temperature, cut to its likeliest tokens.

    The cut keeps the fewest tokens that hold at least `top_p` of the probability (nucleus sampling, arXiv 1904.09751). The
    same seed draws the same tokens from the same logits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is above 0 and at most 1, got {self.top_p}")

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator at the seed; one for each text, since drawing moves it on."""
        return torch.Generator(device).manual_seed(self.seed)

    def __call__(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """logits [B, vocabulary] -> tokens [B] int64."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        chances = torch.softmax(logits.to(torch.float32) / self.temperature, dim=-1)
        return torch.multinomial(keep_top(chances, self.top_p), 1, generator=generator).squeeze(-1)


def keep_top(chances: Tensor, top_p: float) -> Tensor:
    """chances [B, vocabulary] with all but the likeliest tokens, which hold at least `top_p` together, set to 0."""
    if top_p == 1:
        return chances
    sorted_chances, order = chances.sort(dim=-1, descending=True)
    above = sorted_chances.cumsum(dim=-1) - sorted_chances  # what the tokens before hold: the first one always stays
    kept = sorted_chances.masked_fill(above >= top_p, 0.0)
    return torch.zeros_like(chances).scatter(-1, order, kept)
