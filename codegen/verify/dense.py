"""What must come out of a case: dense attention in float64, written from the formula, beside what PyTorch makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnc.codegen.verify.cases import Inputs, kept


def visible(inputs: Inputs, sequence: int, head: int, member: int, first: int, last: int) -> Tensor:
    """[queries first..last of a sequence, its keys] for a query head of a KV head."""
    begin, past = inputs.begins[sequence], inputs.case.pasts[sequence]
    keys = range(begin, begin + len(inputs.keys[sequence]))
    return kept(inputs.case, sequence, head, keys, range(past + first, past + last), inputs.q.device, member)


def logits(inputs: Inputs, q: Tensor, key: Tensor, head: int, seen: Tensor) -> Tensor:
    """In the dtype of q and key, with the cap; what is not seen is -inf."""
    score = (q @ key.T) * inputs.scale[head].to(q.dtype)
    if inputs.cap is not None:
        score = inputs.cap * torch.tanh(score / inputs.cap)
    return score.masked_fill(~seen, -math.inf)


def rows_of(inputs: Inputs, block: int) -> Iterator[tuple[int, int, int, slice, Tensor]]:
    """(sequence, query head, KV head, slice of tokens, its keys that the queries see) in blocks of queries."""
    offsets = inputs.batch.offsets.tolist()
    for s, size in enumerate(inputs.case.sizes):
        for first in range(0, size, block):
            last = min(size, first + block)
            for head in range(len(inputs.case.unions)):
                for member in range(inputs.case.kernel.group):
                    if member == 0 or inputs.case.own is not None:
                        seen = visible(inputs, s, head, member, first, last)
                    yield s, head * inputs.case.kernel.group + member, head, slice(offsets[s] + first, offsets[s] + last), seen


def reference(inputs: Inputs, block: int = 1024) -> tuple[Tensor, Tensor]:
    """o [T, H, E] and the natural log-sum-exp [T, H], in float64, a block of queries at a time."""
    tokens, heads, _ = inputs.q.shape
    o = torch.zeros(tokens, heads, inputs.case.kernel.value_width, dtype=torch.float64, device=inputs.q.device)
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64, device=inputs.q.device)
    for s, head, group, place, seen in rows_of(inputs, block):
        score = logits(inputs, inputs.q[place, head].double(), inputs.keys[s][:, group].double(), head, seen)
        if inputs.sink_logit is not None:
            score = torch.cat([score, inputs.sink_logit[head].double().expand(len(score), 1)], 1)
        if score.shape[1] == 0:
            continue
        lse[place, head] = score.logsumexp(1)
        weight = torch.exp(score - torch.where(lse[place, head] == -math.inf, 0, lse[place, head])[:, None])
        o[place, head] = weight[:, : seen.shape[1]] @ inputs.values[s][:, group].double()
    return o, lse


def torch_own(inputs: Inputs, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The same by torch in the inputs' dtype: its attention with a mask; with a cap or a sink logit, which that lacks, its
    matrix products and softmax. Rows without keys are 0.
    """
    o = torch.zeros(*inputs.q.shape[:2], inputs.case.kernel.value_width, dtype=inputs.q.dtype, device=inputs.q.device)
    lse = torch.full(inputs.q.shape[:2], -math.inf, dtype=torch.float32, device=inputs.q.device)
    for s, head, group, place, seen in rows_of(inputs, block):
        q, key, value = inputs.q[place, head], inputs.keys[s][:, group], inputs.values[s][:, group]
        score = logits(inputs, q, key, head, seen)
        if inputs.sink_logit is not None:
            score = torch.cat([score, inputs.sink_logit[head].to(q.dtype).expand(len(score), 1)], 1)
        if score.shape[1] == 0:
            continue
        lse[place, head] = score.logsumexp(1).float()
        if inputs.cap is None and inputs.sink_logit is None:
            q, key, value = (x[None, None].contiguous() for x in (q, key, value))
            scale = float(inputs.scale[head])
            some = torch.nn.functional.scaled_dot_product_attention(q, key, value, attn_mask=seen[None, None], scale=scale)[
                0, 0
            ]
        else:
            some = score.softmax(1)[:, : seen.shape[1]] @ value
        o[place, head] = torch.where(seen.any(1)[:, None], some, 0)
    return o, lse


def counts(inputs: Inputs, block: int = 1024) -> Tensor:
    """[T, H], how many keys each query sees."""
    found = torch.zeros(inputs.q.shape[:2], dtype=torch.int64, device=inputs.q.device)
    for _, head, _, place, seen in rows_of(inputs, block):
        found[place, head] = seen.sum(1)
    return found
