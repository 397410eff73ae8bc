"""Keys that no query sees one by one, as codes with log count and mean value (LongVQ, arXiv 2404.11163; Transformer-VQ,
arXiv 2309.16354): exactly softmax over keys of which those are quantised.

Codes stand for unturned keys, and unturned queries read them: what is far has no place of its own. While training every old key
is read by itself, as its code, so that it has a gradient (straight through); a cache keeps counts and sums of values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .batch import Batch
from .call import Call
from .condensed import Condensed, States, Text, blocks, read
from .intervals import HeadGroup

LEAST = 0.01
"""What averages of counts are at least when codes are found from them (Transformer-VQ)."""


MOST = 64
"""Calls whose keys are told apart until codes are moved."""


class Codes(Condensed):
    """`ema`: how much of the averages of keys and counts stays in a step; `commit`: what the pull of keys to codes counts."""

    states = ("count", "value")
    followed = ("codebook", "codebook_count")
    adds = ("commit",)

    def __init__(self, name: str, group: HeadGroup, *, ema: float, commit: float, **options: Any) -> None:
        super().__init__(name, group, **options)
        self.ema, self.commit = ema, commit
        self.seen: dict[Batch, tuple[Tensor, Tensor]] = {}
        """Counts and sums of the keys of calls that trained, since the codes were moved."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: Call,
        slot: int,
        codebook: Tensor,
        codebook_count: Tensor,  # noqa: ARG002 (codes alone are read; `follow` moves both)
        sink_logit: Tensor | None = None,
    ) -> Tensor:
        """codebook [G, n, D]. Gradients reach k through the codes that it falls to; codes are moved by `follow`."""
        if call.cache is None and call.batch.phase == "train" and torch.is_grad_enabled() and call.batch.tokens:
            self._learn(k, codebook, call)
        return self.run(q, k, v, call, slot, sink_logit, heads=(codebook,))

    def _learn(self, k: Tensor, codebook: Tensor, call: Call) -> None:
        """Takes down which keys fall to which code, and adds the pull of keys to codes to the training loss."""
        codes = codebook.to(torch.promote_types(k.dtype, torch.float32))
        wide = k.to(codes.dtype)
        taken = nearest(wide, codes)
        pull = self.commit * (wide - of_codes(codes, taken)).square().sum(-1).mean()
        call.losses["commit"] = call.losses["commit"] + pull if "commit" in call.losses else pull
        if torch.compiler.is_compiling():
            raise RuntimeError("codes of a codebook follow the keys of plain calls: train it without torch.compile")
        sums = torch.zeros_like(codes)
        self.seen[call.batch] = add(sums[..., 0], sums, taken, wide.detach())  # computed again on the way back, it counts once
        if len(self.seen) > MOST:  # nobody follows: what is old is one sum
            (first, one), (_, other) = list(self.seen.items())[:2]
            self.seen = {first: (one[0] + other[0], one[1] + other[1])} | dict(list(self.seen.items())[2:])

    @torch.no_grad()
    def follow(self, holder: nn.Module) -> None:
        """Moves the codes of the module that holds them by the average of the keys that fell to each since the last time."""
        if not self.seen:
            return
        count, total = (torch.stack(one).sum(0) for one in zip(*self.seen.values(), strict=True))
        self.seen.clear()
        codes, counts = holder.get_parameter("codebook"), holder.get_parameter("codebook_count")
        old = codes.to(total.dtype) * counts.to(total.dtype).clamp(min=LEAST).unsqueeze(-1)
        new = self.ema * counts.to(count.dtype) + (1 - self.ema) * count
        sums = self.ema * old + (1 - self.ema) * total
        codes.copy_(sums / new.clamp(min=LEAST).unsqueeze(-1))
        counts.copy_(new)

    def _torch(self, text: Text) -> tuple[Tensor, States]:
        (codes,), at = text.more, text.positions()
        taken = nearest(text.k, codes)
        zeros = codes.new_zeros(*codes.shape[:2], text.v.shape[2])
        count, total = text.states.get("count", zeros[..., 0]), text.states.get("value", zeros)
        outputs, many, done = [], len(text.q) > blocks(len(text.q))[0][1], text.first(text.past)
        for begin, end in blocks(len(text.q)):
            first = 0 if text.learns else text.first(text.past + begin)
            if not text.learns:
                gone = _between(at, done, first, text.numbers.sink)
                count, total = add(count, total, taken[gone], text.v[gone])
                done = first
            near = ((at >= first) & (at < text.past + end)) | (at < min(text.numbers.sink, text.past + end))
            spots = near.nonzero().squeeze(1)
            given = (text, codes, text.q[begin:end], text.k[spots], text.v[spots], taken[spots], at[spots], begin, count, total)
            if text.learns and many:
                outputs.append(checkpoint(self._block, *given, use_reentrant=False, preserve_rng_state=False))
            else:
                outputs.append(self._block(*given))
        gone = _between(at, done, text.first(text.end), text.numbers.sink)
        count, total = add(count, total, taken[gone], text.v[gone])
        return torch.cat(outputs), {"count": count, "value": total}

    def _block(
        self,
        text: Text,
        codes: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        taken: Tensor,
        at: Tensor,
        begin: int,
        count: Tensor,
        total: Tensor,
    ) -> Tensor:
        """Some queries over keys one by one, each as itself or as its code, and over codes of those before."""
        i = text.past + begin + torch.arange(len(q), device=q.device)
        exact = self.score(self.turn(q, i), self.turn(k, at))
        straight = of_codes(codes, taken) + (k - k.detach())
        logits = torch.where(text.shown(i[:, None], at[None]), exact, self.score(q, straight))
        logits = logits.masked_fill(at[None] > i[:, None], -torch.inf)
        columns = [(logits, v.transpose(0, 1))]
        if not text.learns:
            far = self.score(q, codes.transpose(0, 1)) + count.log().view(len(codes), 1, 1, -1)
            columns.append((far, total / count.clamp(min=1.0).unsqueeze(-1)))
        return read(columns, text.sink_logit)

    def _reference(self, text: Text) -> tuple[Tensor, States]:
        (codes,) = text.more
        zeros = codes.new_zeros(*codes.shape[:2], text.v.shape[2])
        count, total = text.states.get("count", zeros[..., 0]), text.states.get("value", zeros)
        o, count, total = self.formula(text, codes, count, total, self.group.visible, self.turn, self.scale, self.cap)
        return o, {"count": count, "value": total}


def nearest(k: Tensor, codes: Tensor) -> Tensor:
    """The number of the code nearest to each key k [L, G, D], [L, G]."""
    with torch.no_grad():
        near: Tensor = torch.cdist(k.transpose(0, 1), codes).argmin(-1).transpose(0, 1)
        return near


def of_codes(codes: Tensor, taken: Tensor) -> Tensor:
    """The codes [G, n, D] of numbers [L, G], [L, G, D]."""
    return codes[torch.arange(len(codes), device=codes.device), taken].detach()


def add(count: Tensor, total: Tensor, taken: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [G, n] and sums [G, n, E] with the values [L, G, E] of keys that fell to codes [L, G]."""
    where = taken.transpose(0, 1)
    ones = torch.ones_like(where, dtype=count.dtype)
    wide = where.unsqueeze(-1).expand(-1, -1, values.shape[2])
    return count.scatter_add(1, where, ones), total.scatter_add(1, wide, values.transpose(0, 1))


def _between(at: Tensor, first: int, end: int, sink: int) -> Tensor:
    """Keys of positions first..end - 1, but for the first `sink` ones."""
    return ((at >= max(first, sink)) & (at < end)).nonzero().squeeze(1)
