"""Choices that hold for several decode steps, for all sequences of a call at once: the device decides who chooses anew.

Legend: S sequences, with one new token each; H query heads; C choosers; K units of a choice; G KV heads; R numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .choices import BROKEN, MISSING
from .intervals import Form
from .list_launch import LaunchLists
from .selector import Selector
from .storage import LayerCache


def held(
    one: Selector, q: Tensor, batch: Batch, cache: LayerCache, choose: Callable[[Tensor], LaunchLists]
) -> tuple[LaunchLists, Tensor]:
    """What each sequence keeps at this step, and the position [S] after which it sees all tokens too; q [S, H, D].

    choose: fresh lists where it is told so, [S]; elsewhere nothing is scored, and they hold anything.
    """
    assert batch.max_new == 1, "a token at a time"
    names = {name: f"{one.held}.{name}" for name in ("chosen", "chosen_at", "asked")}
    chosen, at = (cache.state(names[name], batch) for name in ("chosen", "chosen_at"))  # [S, C, K], [S, 1]
    before = cache.state(names["asked"], batch) if names["asked"] in cache.states else None
    fires = firing(one, batch.past, at[:, 0], q, before)
    fresh = choose(fires)
    chosen = torch.where(fires.view(-1, 1, 1), _numbers(fresh, chosen.shape[2]), chosen)
    newer = torch.where(fires, torch.full_like(batch.past, -1) if one.dense else batch.past, at[:, 0].to(batch.past.dtype) - 1)
    cache.set_state(names["chosen"], chosen, batch)
    cache.set_state(names["chosen_at"], torch.where(fires, batch.past + 1, at[:, 0]).to(at.dtype).unsqueeze(1), batch)
    if before is not None:
        asked = torch.where(fires.view(-1, 1, 1), q.view(before.shape).to(before.dtype), before)
        cache.set_state(names["asked"], asked, batch)
    index = chosen.transpose(0, 1).contiguous()
    count = (index >= 0).sum(dim=-1, dtype=torch.int32).masked_fill((index == BROKEN).any(dim=-1), -1)
    return LaunchLists(index, count, batch.offsets[:-1], 1, 1), newer


def firing(one: Selector, past: Tensor, at: Tensor, q: Tensor, before: Tensor | None) -> Tensor:
    """Which sequences choose anew, [S]; `at`: one past the position that chose last, 0 where none has."""
    steps = past + 1 - at
    fires = at == 0
    for rule in one.refresh:
        if isinstance(rule, int):
            fires = fires | (steps >= rule)
        else:
            assert before is not None, "the query that chose last is kept"
            cosine = F.cosine_similarity(q.flatten(1).to(before.dtype), before.flatten(1), dim=1)
            fires = fires | ((torch.remainder(steps, rule[1]) == 0) & (cosine < rule[0]))
    return fires


def _numbers(lists: LaunchLists, most: int) -> Tensor:
    """Lists of one query a sequence as numbers [S, C, most], MISSING where there are fewer."""
    index = lists.index[..., :most]
    inside = torch.arange(index.shape[2], device=index.device) < lists.count.unsqueeze(-1)
    row = F.pad(torch.where(inside, index, MISSING), (0, most - index.shape[2]), value=MISSING)
    return torch.where(lists.count.unsqueeze(-1) < 0, BROKEN, row).transpose(0, 1).to(torch.int32)


def shown_since(table: Tensor, form: Form, batch: Batch, since: Tensor) -> Tensor:
    """Rows [S, G, R] whose first near interval begins where any does, or right after `since` [S]: of one query a sequence."""
    i, table = batch.past.view(-1, 1), table.expand(batch.sequences, -1, -1).clone()
    begin = (since + 1).view(-1, 1).expand(-1, table.shape[1])
    for near in range(form.nears):
        align, shift, back, _ = table[..., 1 + 4 * near : 5 + 4 * near].long().unbind(-1)
        lower = torch.div(i + shift, align, rounding_mode="floor") * align - shift - back
        begin = torch.minimum(begin, lower.clamp(min=0))
    numbers = torch.stack((torch.ones_like(begin), torch.zeros_like(begin), i - begin, torch.zeros_like(begin)), dim=-1)
    table[..., 1:5] = numbers.to(table.dtype)
    return table
