"""torch.nn.attention.flex_attention as its users call it: heads first, a mask function, a block mask made for a length.

The runtime's provider `flex` is another thing: what a built model may run. `planned` times it where a plan chose it.

Legend: N tokens of each of B sequences; H query heads on G KV heads; D key width.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnc.bench.peers import HEADS_FIRST, Prepared, decoding, inputs, wait
from attnc.bench.sdpa import kept_to, refuses_score
from attnc.bench.seeing import is_full, mask_of, uniform, window_of
from attnc.bench.work import Work

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Flex:
    """torch.nn.attention.flex_attention with a block mask made from the key set's formula. `compiled`: False is for tests."""

    name: str = "flex"
    compiled: bool = True

    def refuse(self, work: Work) -> str | None:
        """Any mask of positions; its kernels are compiled for GPUs."""
        if self.compiled and work.q.device.type != "cuda":
            return "is compiled for GPUs"
        return None if work.launch.plain else "has no such score"

    def prepare(self, work: Work) -> Prepared:
        """The block mask is what `setup` counts."""
        call = attend(work.sink_logit is not None)
        call = compiled(call) if self.compiled else call
        options = {"scale": work.launch.mix.scale, "enable_gqa": work.launch.repeat > 1, "score_mod": _cap(work.launch.mix.cap)}
        if work.phase == "decode":
            return decoding(work, by_name(call, **options))
        if is_full(work) and not work.form.causal:
            return Prepared(by_name(call, **options), inputs(work, HEADS_FIRST), HEADS_FIRST)
        heads = None if uniform(work) else work.launch.heads
        mask, seconds = block_mask(work, mask_of(work), heads, self.compiled)
        return Prepared(by_name(call, block_mask=mask, **options), inputs(work, HEADS_FIRST), HEADS_FIRST, seconds)


@dataclass(frozen=True)
class Split:
    """What users do today for heads that see different keys: cuDNN for those that see all, flex for the others, then cat."""

    name: str = "split"
    compiled: bool = True

    def refuse(self, work: Work) -> str | None:
        """There must be something to split."""
        if uniform(work):
            return "is for layers whose heads see different keys"
        if work.phase == "decode":
            return "is what all others do while decoding"
        if self.compiled and work.q.device.type != "cuda":
            return "is compiled for GPUs"
        return refuses_score(work)

    def prepare(self, work: Work) -> Prepared:
        """A call for each group of heads."""
        repeat, scale = work.launch.repeat, work.launch.mix.scale
        parts: list[tuple[slice, slice, Callable[..., Tensor]]] = []
        seconds = 0.0
        for group, (_, union) in zip(work.groups, work.unions, strict=True):
            if window_of(union) == (None, None):
                call: Any = partial(_whole, scale, union.causal, repeat > 1, "cudnn" if self.compiled else None)
            else:
                mask, more = block_mask(work, _of_one(group.visible, work.length), None, self.compiled)
                run = compiled(attend(False)) if self.compiled else attend(False)
                call, seconds = by_name(run, block_mask=mask, scale=scale, enable_gqa=repeat > 1), seconds + more
            parts.append((slice(group.first * repeat, (group.last + 1) * repeat), slice(group.first, group.last + 1), call))

        def all_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.cat([call(q[:, mine], k[:, theirs], v[:, theirs]) for mine, theirs, call in parts], dim=1)

        return Prepared(all_heads, inputs(work, HEADS_FIRST), HEADS_FIRST, seconds)


def _whole(scale: float, causal: bool, grouped: bool, backend: str | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with kept_to(backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)


def _of_one(visible: Callable[[Tensor, Tensor, int], Tensor], length: int) -> Mask:
    return lambda _b, _h, i, j: visible(i, j, length)


def block_mask(work: Work, mask: Mask, heads: int | None, is_compiled: bool) -> tuple[Any, float]:
    """flex_attention's block mask, and the seconds that making it takes once the making is compiled."""
    from torch.nn.attention.flex_attention import create_block_mask

    size, seconds, found = work.length, 0.0, None
    for _ in range(2 if is_compiled else 1):
        began = time.perf_counter()
        found = create_block_mask(mask, None, heads, size, size, device=str(work.q.device), _compile=is_compiled)
        wait(work)
        seconds = time.perf_counter() - began
    return found, seconds


def compiled(function: Any) -> Any:
    """Compiled anew for every shape, and so that its backward pass can be called twice."""
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 256)
    torch._functorch.config.donated_buffer = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(function, dynamic=False)


def attend(with_sink: bool) -> Callable[..., Any]:
    """flex_attention, and as its users add a logit without a value: the result shrinks by the share of the softmax it takes."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def beside_sink(q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor, **options: Any) -> Tensor:
        part, more = flex_attention(q, k, v, return_aux=AuxRequest(lse=True), **options)
        share = torch.sigmoid(more.lse - sink_logit.view(1, -1, 1))
        return torch.Tensor.to(part * share.unsqueeze(-1), q.dtype)

    plain: Callable[..., Any] = flex_attention
    return beside_sink if with_sink else plain


def by_name(call: Callable[..., Any], **options: Any) -> Callable[..., Tensor]:
    """`call`, whose tensors have other names, as the bench calls participants."""

    def run(q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor | None = None) -> Tensor:
        o: Tensor = call(q, k, v, **options) if sink_logit is None else call(q, k, v, sink_logit, **options)
        return o

    return run


def _cap(cap: float | None) -> Callable[..., Tensor] | None:
    if cap is None:
        return None
    return lambda score, _b, _h, _i, _j: cap * torch.tanh(score / cap)
