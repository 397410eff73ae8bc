"""The provider `flex`: PyTorch's flex_attention, compiled, over lists of blocks made from the numbers of the launch.

Legend: T new tokens of S sequences; H query heads, G KV heads; D key width; E value width; N queries and L keys a row.

The mask of a launch is a text: what all heads and sequences share stands in it as a constant, other numbers are read from a
table. So PyTorch compiles a launch for the first length that it meets and once more for any other. Keys of several parts (a
cache and new ones) are laid side by side, which copies them. Gradients come from flex_attention's own backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from .autocast import cast
from .batch import Batch
from .block_lists import BLOCK, Stretch, block_lists
from .flex_text import attend_code, mask_code, mask_text
from .gathered import Gathered, gather, head_ranges
from .intervals import Form, HeadGroup, has_shares, row
from .keys import KeyPart

Table = tuple[tuple[tuple[int, ...], ...], ...]
"""The numbers of every sequence (or one row for all) and KV head, [S][G][R]."""

Flex = Callable[..., Any]
"""A function with the arguments and results of torch.nn.attention.flex_attention.flex_attention."""

WIDTHS = (16, 256)
"""Head widths that flex_attention's kernels take."""


def flex_attention(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
    using: Flex | None = None,
) -> Tensor:
    """A `Provider` (softmax.py): q [T, H, D] -> [T, H, E]. `using`: what runs in place of the compiled flex_attention."""
    return flex_attention_lse(q, parts, groups, form, batch, scale, cap, sink_logit, using)[0]


def flex_attention_lse(
    q: Tensor,
    parts: tuple[KeyPart, ...],
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
    using: Flex | None = None,
) -> tuple[Tensor, Tensor]:
    """As `flex_attention`, and the log-sum-exp [T, H] float32 of all parts and the sink; both have gradients."""
    if batch.tokens == 0:
        return q.new_zeros(0, q.shape[1], parts[0].v_width), q.new_zeros(0, q.shape[1], dtype=torch.float32)
    if using is None:
        complain(cast(q)[0], parts[0])
    if isinstance(scale, Tensor):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, scale = (q.to(wide) * scale.to(wide).unsqueeze(-1)).to(q.dtype), 1.0
    repeat = q.shape[1] // (groups[-1].last + 1)
    outputs = []
    for first, last in head_ranges(parts):
        found = gather(q, parts, first, last, batch)
        some = tuple(group for group in groups if group.first <= last and first <= group.last)
        sink = None if sink_logit is None else sink_logit[first * repeat : (last + 1) * repeat]
        heads = tuple(group for group in some for _ in range(max(group.first, first), min(group.last, last) + 1))
        own = batch.totals[found.queries[0].sequence]
        lengths = batch.totals if has_shares(some) and len(found.queries) > 1 else (own,)
        table = tuple(tuple(row(group, Form.of(some, form.causal), length) for group in heads) for length in lengths)
        outputs.append(_launch(found, table, Form.of(some, form.causal), repeat, (scale, cap, sink), using))
    o, lse = zip(*outputs, strict=True)
    return torch.cat(o, dim=1) if len(o) > 1 else o[0], torch.cat(lse, dim=1) if len(lse) > 1 else lse[0]


def complain(q: Tensor, part: KeyPart) -> None:
    """Raises ValueError where flex_attention has no kernel for the queries and the keys."""
    if q.device.type != "cuda":
        raise ValueError(f"flex_attention runs on a GPU; q is on {q.device}")
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"flex_attention takes float32, bfloat16 and float16; q is {q.dtype}")
    if not all(WIDTHS[0] <= width <= WIDTHS[1] for width in (part.k_width, part.v_width)):
        raise ValueError(f"flex_attention takes heads of {WIDTHS[0]} to {WIDTHS[1]}, not {part.k_width} and {part.v_width}")


def _launch(
    found: Gathered, table: Table, form: Form, repeat: int, score: tuple[float, float | None, Tensor | None], using: Flex | None
) -> tuple[Tensor, Tensor]:
    """One call of flex_attention for heads whose keys lie alike: o [T, H, E], lse [T, H]."""
    scale, cap, sink = score
    if found.k.shape[2] == 0:
        tokens, heads = found.q.shape[0] * found.q.shape[2], found.q.shape[1]
        lse = found.q.new_full((tokens, heads), float("-inf"), dtype=torch.float32)
        return found.q.new_zeros(tokens, heads, found.v.shape[3]), lse if sink is None else sink.float().expand_as(lse)
    text, blocks = _mask(table, form, repeat, found.queries, found.keys, found.q.device)
    o, lse = _attend(text, scale, cap, using)(found.q, found.k, found.v, blocks, sink)
    return found.flat(o), found.flat(lse.unsqueeze(-1)).squeeze(-1)


@lru_cache(maxsize=256)
def _attend(mask: str, scale: float, cap: float | None, using: Flex | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """attend(q, k, v, blocks, sink), compiled unless `using` runs. Compiling the same text again costs seconds."""
    code = attend_code(mask, scale, cap)
    if using is not None:
        return partial(code, using)
    from torch.nn.attention.flex_attention import flex_attention as plain

    return partial(torch.compile(code, fullgraph=True), plain)


@lru_cache(maxsize=32)
def _mask(
    table: Table, form: Form, repeat: int, queries: tuple[Stretch, ...], keys: tuple[Stretch, ...], device: torch.device
) -> tuple[str, Any]:
    """The text of a mask and flex_attention's BlockMask, made once for each set of numbers and lengths."""
    from torch.nn.attention.flex_attention import BlockMask

    heads = range(len(table[0]))
    patterns = list(dict.fromkeys(tuple(rows[head] for rows in table) for head in heads))
    lists = block_lists([torch.tensor(pattern) for pattern in patterns], form.nears, form.strides, form.causal, queries, keys)
    number = {pattern: at for at, pattern in enumerate(patterns)}
    which = [number[tuple(rows[head] for rows in table)] for head in heads for _ in range(repeat)]
    index = torch.tensor(which if len(patterns) > 1 else [0])
    some, whole, some_turned, whole_turned = ([x[index].unsqueeze(0).to(device) for x in pair] for pair in lists)
    several = len(queries) > 1
    sides = queries, keys
    placed = [len(side) == 1 and side[0].position == 0 for side in sides]
    learned = any(one.position < 0 for one in keys)
    text = mask_text(table, form, (placed[0], placed[1]), several, queries == keys, learned)
    numbers = torch.tensor(table, dtype=torch.int32).repeat_interleave(repeat, dim=1)
    positions = [torch.cat([torch.arange(one.position, one.position + one.size) for one in side]) for side in sides]
    sequences = [torch.repeat_interleave(torch.tensor(side)[:, 0], torch.tensor(side)[:, 2]) for side in sides]
    captured = (x.to(device=device, dtype=torch.int32) for x in (numbers, *positions, *sequences))
    lengths = (sum(one.size for one in queries), sum(one.size for one in keys))
    by_query, by_key = (
        (some[0], some[1], whole[0], whole[1]),
        (some_turned[0], some_turned[1], whole_turned[0], whole_turned[1]),
    )
    return text, BlockMask(lengths, *by_query, *by_key, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_code(text)(*captured))
