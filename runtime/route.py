"""Routes per token: each token's key goes to one alternative, every query reads all alternatives, learned weights join them.

Legend: T new tokens of S sequences; A alternatives; H query heads, G KV heads; D key width; E value width.
Runs as written, like the reference: no kernel says it yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_reference import keys, softmax_weights
from .autocast import cast, enabled, off
from .batch import Batch
from .intervals import HeadGroup
from .softmax import begin, finish
from .storage import LayerCache


def routes(logits: Tensor, estimator: str, noisy: bool) -> Tensor:
    """Router logits [T, A] -> [T, A], one-hot at the largest, with the gradient of the softmax (straight-through).

    `gumbel`: while training (`noisy`) Gumbel noise is added first, so that other alternatives are tried (arXiv 1611.01144).
    """
    if estimator == "gumbel" and noisy:
        logits = logits - torch.empty_like(logits).exponential_().log()
    soft = logits.softmax(dim=-1)
    hard = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


@dataclass(frozen=True)
class TokenRoute:
    """q [T, H, D], k [T, G, D], v [T, G, E], routes [T, A], weights [T, H, A] -> [T, H, E].

    `alternatives`: one head group each, over all KV heads; query i reads of alternative a the keys that a's mask lets it see
    and that were routed to a. The cache keeps a token's route as A more channels of its value.
    """

    alternatives: tuple[HeadGroup, ...]
    scale: float
    cap: float | None = None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, weights: Tensor, batch: Batch, cache: LayerCache | None
    ) -> Tensor:
        """Sums the alternatives' outputs, weighed for each query and head; under `torch.autocast` q, k and v in its dtype."""
        if enabled(q):
            q, k, v = cast(q, k, v)
            with off(q):
                return self(q, k, v, chosen, weights, batch, cache)
        values = torch.cat((v, chosen.to(v.dtype).unsqueeze(1).expand(-1, v.shape[1], -1)), dim=-1)
        parts = begin(k, values, batch, cache)
        wide = torch.promote_types(q.dtype, torch.float32)
        outputs = []
        for s, tokens in enumerate(torch.split(q.to(wide), list(batch.sizes))):
            if not len(tokens):
                continue
            runs = [run for part in parts if part.counts[s] for run in part.read(0, k.shape[1] - 1, s)]
            past, stored, j = keys(runs, q.shape[1] // k.shape[1], wide)
            i = torch.arange(len(tokens), device=q.device) + batch.pasts[s]
            outputs.append(self._read(tokens.transpose(0, 1), past, stored, i, j, batch.totals[s]))
        finish(k, values, batch, cache)
        if not outputs:
            return q.new_zeros(0, q.shape[1], v.shape[2])
        joined: Tensor = torch.einsum("tha,ahte->the", weights.to(wide), torch.cat(outputs, dim=2))
        return joined.to(q.dtype)

    def _read(self, q: Tensor, k: Tensor, stored: Tensor, i: Tensor, j: Tensor, length: int) -> Tensor:
        """q [H, n, D], k [H, L, D], stored [H, L, E + A] -> every alternative's output [A, H, n, E]."""
        count = len(self.alternatives)
        v, chosen = stored[..., :-count], stored[..., -count:]
        logits = q @ k.transpose(1, 2) * self.scale
        logits = logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
        outputs = []
        for a, group in enumerate(self.alternatives):
            assert group.visible is not None, "an alternative has a mask"
            seen = group.visible(i[:, None], j[None, :], length) & (chosen[0, :, a] > 0.5)
            outputs.append(softmax_weights(logits, seen, None) @ (v * chosen[..., a : a + 1]))
        return torch.stack(outputs)
