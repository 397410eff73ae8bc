"""Keys and values of all heads from one latent a token (`kv_latent`; DeepSeek-V2's attention, arXiv 2405.04434).

A cache holds the latent and the one rotated key, both as one head; keys and values are made of them for every call, so that
every phase runs the same launch, on kernels for keys and values of up to 256. (Multiplying queries by the key part of the
expansion instead would read the latent alone, L + R wide: wider than generated kernels go.)

Legend: T new tokens of S sequences; G KV heads; L, R width of the latent and of the rotated key; D = key + R; E value width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .batch import Batch
from .keys import Band, KeyPart, Steps
from .sizes import DECODE_TOKENS
from .storage import LayerCache


@dataclass(frozen=True)
class Expand:
    """latent [..., L] and rotated [..., R] -> keys [..., G, D], each head's own channels first, and values [..., G, E]."""

    project: nn.Module
    heads: int
    key: int
    value: int

    def __call__(self, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        own, v = self.project(latent).unflatten(-1, (self.heads, self.key + self.value)).split((self.key, self.value), dim=-1)
        if rotated.shape[-1] == 0:
            return own, v
        shared = rotated.unsqueeze(-2).expand(*own.shape[:-1], rotated.shape[-1])
        return torch.cat((own, shared.to(own.dtype)), dim=-1), v


def begin(latent: Tensor, rotated: Tensor, expand: Expand, batch: Batch, cache: LayerCache | None) -> tuple[KeyPart, ...]:
    """As `begin` of softmax.py, of latents [T, 1, L] and rotated keys [T, 1, R]."""
    if cache is not None and batch.max_past > 0 and batch.max_new <= DECODE_TOKENS:
        cache.write(latent, rotated, batch)
        return (cached(cache, batch, expand, written=True),)
    new = batch.keys(*expand(latent.squeeze(1), rotated.squeeze(1)))
    if cache is None or batch.max_past == 0:
        return (new,)
    return (cached(cache, batch, expand, written=False), new)


def cached(cache: LayerCache, batch: Batch, expand: Expand, written: bool) -> KeyPart:
    """Keys and values of the cache's slots, as far as the longest of the batch's sequences fills them, slot by slot.

    What lies in a slot that holds nothing is expanded like the others, and read as little.
    """
    part = cache.part(batch, written)
    k, v = expand(*cache.slots(batch, part.max_stored))  # [S, slots, G, D] and [S, slots, G, E]
    sequences, slots, heads, width = k.shape
    value = v.shape[3]
    first = torch.arange(sequences, device=k.device).unsqueeze(1) * (slots * heads) + torch.arange(heads, device=k.device)
    band = part.bands[0]
    k_steps, v_steps = (Steps(0, slots * heads * size, size, heads * size, size) for size in (width, value))
    return replace(
        part,
        k=k.reshape(-1),
        v=v.reshape(-1),
        k_begin=first * width,
        v_begin=first * value,
        k_stride=heads * width,
        v_stride=heads * value,
        pinned=part.pinned.repeat(heads),
        ring=part.ring.repeat(heads),
        k_width=width,
        v_width=value,
        bands=(Band(0, heads - 1, k_steps, v_steps, band.pinned, band.ring),),
        places=tuple(range(sequences)),
    )
