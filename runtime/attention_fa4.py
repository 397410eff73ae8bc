"""The provider `fa4`: the package flash-attn-4 (github.com/Dao-AILab/flash-attention, flash_attn/cute), where it is installed.

Legend: T new tokens of S sequences; H query heads, G KV heads; D key width; E value width; N queries and L keys a sequence.

A head sees one window around the query, or everything; no sinks of keys, no blocks, strides or powers. Heads with other windows
are calls of their own. Keys of several parts (a cache and new ones) are laid side by side, which copies them. The backward pass
adds in no fixed order unless torch.use_deterministic_algorithms asks for one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autocast import cast
from .batch import Batch
from .block_lists import Stretch
from .gathered import Gathered, gather
from .intervals import Form, HeadGroup
from .keys import KeyPart
from .spans import head_spans
from .windows import window_of

ARCHITECTURES = ((9, 0), (10, 0))
"""Compute capabilities that it is meant for."""


class Functions(NamedTuple):
    """flash_attn_func (q [S, N, H, D]) and flash_attn_varlen_func (q [T, H, D]), or functions that are called alike."""

    dense: Callable[..., Any]
    packed: Callable[..., Any]


def fa4_attention(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
    using: Functions | None = None,
) -> Tensor:
    """A `Provider` (softmax.py): q [T, H, D] -> [T, H, E]. `using`: what runs in place of the package's functions."""
    return fa4_attention_lse(q, parts, groups, form, batch, scale, cap, sink_logit, using)[0]


def fa4_attention_lse(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
    using: Functions | None = None,
) -> tuple[Tensor, Tensor]:
    """As `fa4_attention`, and the log-sum-exp [T, H] float32 of all parts and the sink; both have gradients.

    ValueError where the package cannot do it, with the reason.
    """
    if batch.tokens == 0:
        return q.new_zeros(0, q.shape[1], parts[0].v_width), q.new_zeros(0, q.shape[1], dtype=torch.float32)
    if using is None:
        complain(cast(q)[0], parts[0])
        using = installed()
    if isinstance(scale, Tensor):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, scale = (q.to(wide) * scale.to(wide).unsqueeze(-1)).to(q.dtype), 1.0
    elif scale == 0.0:  # a plain mean
        q, scale = torch.zeros_like(q), 1.0
    repeat = q.shape[1] // (groups[-1].last + 1)
    outputs = []
    for first, last, group in head_spans(groups, parts):
        found = gather(q, parts, first, last, batch)
        window = window_of(group, batch, form.causal)
        _in_order(found, window, form.causal)
        sink = None if sink_logit is None else sink_logit[first * repeat : (last + 1) * repeat]
        outputs.append(
            _call(
                using,
                found,
                softmax_scale=scale,
                causal=form.causal,
                window_size=window,
                learnable_sink=sink,
                softcap=0.0 if cap is None else cap,
            )
        )
    o, lse = zip(*outputs, strict=True)
    return torch.cat(o, dim=1) if len(o) > 1 else o[0], torch.cat(lse, dim=1) if len(lse) > 1 else lse[0]


def complain(q: Tensor, part: KeyPart) -> None:
    """Raises ValueError where flash-attn-4 has no kernel for the queries and the keys."""
    if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) not in ARCHITECTURES:
        raise ValueError("flash-attn-4 runs on GPUs of compute capability 9.0 and 10.0")
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"flash-attn-4 takes bfloat16 and float16; q is {q.dtype}")
    widths = part.k_width, part.v_width
    most = 256 if torch.cuda.get_device_capability(q.device) == (9, 0) else 128
    fits = max(widths) <= most or (most == 128 and widths in ((192, 128), (256, 256)))
    if not fits or any(width % 8 for width in widths):
        raise ValueError(f"flash-attn-4 has no kernel for heads of {widths[0]} and values of {widths[1]} on this GPU")


@cache
def installed() -> Functions:
    """The package's functions; ImportError where it is not installed."""
    from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

    return Functions(flash_attn_func, flash_attn_varlen_func)


def _in_order(found: Gathered, window: tuple[int | None, int | None], causal: bool) -> None:
    """The package counts a window and causality from the last key: it stands where the last query does, none is missing."""
    stretches: dict[int, list[Stretch]] = {one.sequence: [] for one in found.queries}
    for one in found.keys:
        stretches[one.sequence].append(one)
    for query in found.queries:
        keys = stretches[query.sequence]
        follows = all(before.position + before.size == after.position for before, after in pairwise(keys))
        ends = bool(keys) and keys[-1].position + keys[-1].size == query.position + query.size
        if not follows or (not ends and (causal or window != (None, None))):
            raise ValueError("flash-attn-4 reads keys without gaps, up to the last query's own")
        if window[0] is not None and keys[0].position < 0:
            raise ValueError("flash-attn-4 has no keys that every query sees beside a window")


def _call(using: Functions, found: Gathered, **options: Any) -> tuple[Tensor, Tensor]:
    """One call: o [T, H, E], lse [T, H]."""
    q, k, v = (x.transpose(1, 2) for x in (found.q, found.k, found.v))
    options |= {"deterministic": torch.are_deterministic_algorithms_enabled(), "return_lse": True}
    if len(found.queries) == 1:
        o, lse = using.dense(q, k, v, **options)  # [B, N, H, E], [B, H, N]
        return o.flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)
    ordinal = {one.sequence: at for at, one in enumerate(found.queries)}
    lengths = [0] * len(ordinal)
    for one in found.keys:
        lengths[ordinal[one.sequence]] += one.size
    sizes = tuple(one.size for one in found.queries)
    q_ends, k_ends = _ends(sizes, q.device), _ends(tuple(lengths), q.device)
    longest = {"max_seqlen_q": max(sizes), "max_seqlen_k": max(lengths)}
    o, lse = using.packed(q[0], k[0], v[0], cu_seqlens_q=q_ends, cu_seqlens_k=k_ends, **longest, **options)
    return o, lse.transpose(0, 1)  # [T, H, E], [H, T]


@lru_cache(maxsize=64)
def _ends(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)
