"""Keys and values of all heads from one latent a token (`kv_latent`; DeepSeek-V2's attention, arXiv 2405.04434).

A cache holds the latent and the one rotated key side by side, as one head. Training, prefill and long chunks make keys and
values of all heads of them. A few new queries on PyTorch's own attention read the cache as it lies instead: they are multiplied
by the key half of the expansion, q . (K c) = (K^T q) . c, their keys are latents with rotated keys, their values the latents,
of which the value half makes each head's output. (Generated kernels expand: L + R is wider than they go.)

Legend: T new tokens of S sequences; H query heads, G KV heads; L, R width of the latent and of the rotated key; D = key + R;
E value width.
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

    project: nn.Linear
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

    @property
    def latent(self) -> int:
        """L."""
        return self.project.in_features

    @property
    def plain(self) -> bool:
        """Whether its weight says all that it does: nothing trains beside it."""
        return not self.project._forward_hooks

    def halves(self) -> tuple[Tensor, Tensor]:
        """What makes a head's own channels of its key, [G, key, L], and its value, [G, E, L]."""
        both = self.project.weight.view(self.heads, self.key + self.value, self.latent)
        return both[:, : self.key], both[:, self.key :]

    def absorb(self, q: Tensor) -> Tensor:
        """q [T, H, D] -> [T, H, L + R], whose product with a latent and a rotated key is q's with the head's key."""
        grouped = q.reshape(len(q), self.heads, -1, q.shape[2])
        taken = torch.einsum("tgrk,gkl->tgrl", grouped[..., : self.key], self.halves()[0])
        return torch.cat((taken, grouped[..., self.key :].to(taken.dtype)), dim=-1).flatten(1, 2)

    def release(self, o: Tensor) -> Tensor:
        """Weighted sums of latents [T, H, L] -> the same sums of the heads' values, [T, H, E]."""
        grouped = o.reshape(len(o), self.heads, -1, o.shape[2])
        return torch.einsum("tgrl,gvl->tgrv", grouped, self.halves()[1]).flatten(1, 2)


def joined(latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """What a cache keeps of new tokens: [T, 1, L + R] as keys, and no values."""
    return torch.cat((latent, rotated.to(latent.dtype)), dim=-1), latent[..., :0]


def few(batch: Batch) -> bool:
    """Whether a few new tokens follow what a cache holds: then they are stored first, and the cache holds all keys."""
    return batch.max_past > 0 and batch.max_new <= DECODE_TOKENS


def begin(latent: Tensor, rotated: Tensor, expand: Expand, batch: Batch, cache: LayerCache | None) -> tuple[KeyPart, ...]:
    """As `begin` of softmax.py, of latents [T, 1, L] and rotated keys [T, 1, R]."""
    if cache is not None and few(batch):
        cache.write(*joined(latent, rotated), batch)
        return (cached(cache, batch, expand, written=True),)
    new = batch.keys(*expand(latent.squeeze(1), rotated.squeeze(1)))
    if cache is None or batch.max_past == 0:
        return (new,)
    return (cached(cache, batch, expand, written=False), new)


def begin_absorbed(latent: Tensor, rotated: Tensor, expand: Expand, batch: Batch, cache: LayerCache) -> tuple[KeyPart, ...]:
    """The same for queries that `absorb` has made: the cache as it lies, which every KV head reads from its beginning on."""
    cache.write(*joined(latent, rotated), batch)
    part = cache.part(batch, written=True)
    (band,) = part.bands
    k_steps = replace(band.k, head=0)
    begin = part.k_begin.expand(-1, expand.heads)
    absorbed = replace(
        part,
        v=part.k,
        k_begin=begin,
        v_begin=begin,
        v_stride=part.k_stride,
        pinned=part.pinned.repeat(expand.heads),
        ring=part.ring.repeat(expand.heads),
        v_width=expand.latent,
        bands=(replace(band, last=expand.heads - 1, k=k_steps, v=replace(k_steps, width=expand.latent)),),
    )
    return (absorbed,)


def cached(cache: LayerCache, batch: Batch, expand: Expand, written: bool) -> KeyPart:
    """Keys and values of the cache's slots, as far as the longest of the batch's sequences fills them, slot by slot.

    What lies in a slot that holds nothing is expanded like the others, and read as little.
    """
    part = cache.part(batch, written)
    kept = cache.slots(batch, part.max_stored)
    k, v = expand(kept[..., : expand.latent], kept[..., expand.latent :])  # [S, slots, G, D] and [S, slots, G, E]
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
