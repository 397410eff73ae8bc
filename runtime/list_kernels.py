"""Attention over keys that content chooses, by generated kernels: all sequences of a call at once, from lists on the device.

Legend: T new tokens of S sequences; H query heads, G KV heads; C choosers; E value width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention_lists import OneSpan, attend_span
from .attention_torch import torch_attention
from .autocast import word
from .batch import Batch
from .choices import Asker, lists_of
from .gradients import sink_gradient
from .intervals import Form, HeadGroup, rows
from .keys import KeyPart
from .launch import DTYPES, Kernels
from .list_choice import alone, chosen_by_kernels
from .list_chunks import chunk_part
from .list_holding import held, shown_since
from .list_launch import LaunchLists, Taken, asked_by, by_distance, together
from .operators import device_of
from .pooled import text_keys
from .selecting import Asked
from .selector import Selector
from .sizes import largest
from .softmax import ListProvider, head_scale, merge
from .spans import Numbers, exact, head_spans
from .storage import LayerCache

BLOCK = 64
"""Keys, and queries, of the blocks in which kernels read keys at chosen distances."""

Launch = Callable[[Tensor | None], tuple[Tensor, Tensor]]
"""Sink logits [H] -> (o [T, H, E], log-sum-exp [T, H]) over keys that no other launch of the same queries reads."""


@dataclass(frozen=True)
class ListKernels:
    """The kernel files of a launch: those that read lists, the first that serves, and go back, and that make lists.

    shown, chunks: kernels of tokens that are shown where nothing is listed, and of what stands for chunks of tokens
    """

    reading: tuple[ModuleType, ...]
    going_back: tuple[ModuleType, ...]
    making: tuple[ModuleType, ...]
    shown: Kernels | None = None
    chunks: Kernels | None = None

    @classmethod
    def of(cls, modules: Sequence[ModuleType], shown: Kernels | None = None, chunks: Kernels | None = None) -> ListKernels:
        """The files in any order."""

        def having(name: str) -> tuple[ModuleType, ...]:
            return tuple(one for one in modules if hasattr(one, name))

        return cls(having("attend"), having("attend_backward"), having("choose"), shown, chunks)

    def provider(self, makes: bool) -> ListProvider:
        """Attention by kernels; `makes`: lists too where a file makes them, else by PyTorch."""

        def attend_chosen(
            q: Tensor,
            parts: tuple[KeyPart, ...],
            groups: tuple[HeadGroup, ...],
            form: Form,
            batch: Batch,
            scale: float | Tensor,
            cap: float | None = None,
            sink_logit: Tensor | None = None,
            cache: LayerCache | None = None,
        ) -> Tensor:
            if q.dtype not in DTYPES:
                raise ValueError(f"q is bfloat16, float16 or float32 in generated kernels, got {word(q.dtype)}; use('torch')")
            batch, parts = exact(batch, parts)
            repeat = q.shape[1] // sum(band.last - band.first + 1 for band in parts[0].bands)
            outputs = []
            for first, last, group in head_spans(groups, parts):
                heads = slice(first * repeat, (last + 1) * repeat)
                factor = scale[heads] if isinstance(scale, Tensor) else scale
                sink = None if sink_logit is None else sink_logit[heads]
                own, some = replace(group, first=first, last=last), tuple(part.heads(first, last) for part in parts)
                if group.choices:
                    span = _Span(own, form, batch, factor, cap, sink, cache, heads)
                    outputs.append(self._span(q[:, heads], parts, some, span, makes))
                else:
                    static = replace(own, first=0, last=last - first)
                    outputs.append(torch_attention(q[:, heads], some, (static,), form, batch, factor, cap, sink))
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

        return attend_chosen

    def _span(self, q: Tensor, parts: tuple[KeyPart, ...], some: tuple[KeyPart, ...], span: _Span, makes: bool) -> Tensor:
        """q [T, H, D] of the span's heads -> [T, H, E]; `some`: its heads of the parts."""
        q = q if q.stride(-1) == 1 else q.contiguous()
        choices = sorted((one for one in span.group.choices if one.keys != "chunks"), key=lambda one: one.diagonals)
        if span.apart(choices) or (torch.is_grad_enabled() and _ungraded(choices)):
            return self._by_torch(q, parts, span)
        launches = [self._over_chunks(one, q, parts, span) for one in span.group.choices if one.keys == "chunks"]
        launches += self._over_lists(choices, q, parts, some, span, makes)
        if not choices and self.shown is not None:
            launches += [_softmax(self.shown, q, part, span) for part in some]
        silent = None if span.sink is None else torch.full_like(span.sink, float("-inf"))
        o, lse = launches[0](span.sink)
        for launch in launches[1:]:
            o, lse = merge(o, lse, *launch(silent))
        return o

    def _over_chunks(self, one: Selector, q: Tensor, parts: tuple[KeyPart, ...], span: _Span) -> Launch:
        """Attention to what stands for chunks of tokens."""
        assert self.chunks is not None, "a summary comes with its kernels"
        return _softmax(self.chunks, q, chunk_part(one, parts, span.group, span.batch, span.cache, q.dtype), span)

    def _over_lists(
        self,
        choices: list[Selector],
        q: Tensor,
        parts: tuple[KeyPart, ...],
        some: tuple[KeyPart, ...],
        span: _Span,
        makes: bool,
    ) -> list[Launch]:
        """Attention to what intervals show and content chooses, of each part; a later choice leaves out what the first has."""
        launches: list[Launch] = []
        taken: Taken | None = None
        for one in choices:
            with torch.no_grad():
                making = next((module for module in self.making if makes and made_by(module, one)), None)
                lists, since = _lists(making, one, q, parts, some, span, span.holds(one))
                lists = replace(lists, taken=taken)
                if one is not choices[-1]:
                    taken = Taken.of(lists, -(-span.longest(some) // one.unit))
            reads = next(file for file in self.reading if read_by(file, one) and serves(file, q, lists))
            goes_back = next((file for file in self.going_back if not _ungraded(choices) and read_by(file, one)), None)
            form = replace(span.form, nears=max(1, span.form.nears)) if one.refresh else span.form
            table = rows(alone(span.group), form, span.batch)
            table = table if since is None else shown_since(table, form, span.batch, since)
            factor = head_scale(span.scale, q.shape[1], q.device)
            calls = [Call(reads, goes_back, part, table, form, span.batch, factor, span.cap, lists) for part in some]
            launches += [partial(attend, q, call=call) for call in calls]
        return launches

    @staticmethod
    def _by_torch(q: Tensor, parts: tuple[KeyPart, ...], span: _Span) -> Tensor:
        group = span.group
        own = OneSpan(group.first, group.last, group, span.form, span.scale, span.cap, span.sink)
        return attend_span(q, parts, own, span.batch, span.cache, span.heads)


class _Attend(torch.autograd.Function):
    """One part's attention by a file that reads lists, with its gradients by the file beside it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """(o [T, H, E], log-sum-exp [T, H]); k and v are flat, as the part's."""
        part = call.part.holding(k, v)
        with device_of(q):
            o, lse = call.reads.attend(q, part, call.rows, call.form, call.batch, call.scale, call.cap, sink, call.lists)
        ctx.call = call
        ctx.save_for_backward(q, k, v, sink, o, lse)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor, lse_grad: Tensor) -> tuple[Any, ...]:
        """Of q, k, v and the sink logit."""
        q, k, v, sink, o, lse = ctx.saved_tensors
        call: Call = ctx.call
        part = call.part.holding(k, v)
        assert call.goes_back is not None, "asked for no gradients"
        with device_of(q):
            q_grad, delta, k_grad, v_grad = call.goes_back.attend_backward(
                q, part, call.rows, call.form, call.batch, call.scale, call.cap, call.lists, o, lse, o_grad, lse_grad
            )
        return q_grad, k_grad, v_grad, None if sink is None else sink_gradient(sink, lse, delta), None


@dataclass(frozen=True, eq=False)
class Call:
    """What a launch on one part is given beside q and the sink logit, and the files that attend and go back."""

    reads: ModuleType
    goes_back: ModuleType | None
    part: KeyPart
    rows: Tensor
    form: Form
    batch: Batch
    scale: Tensor
    cap: float | None
    lists: LaunchLists


def attend(q: Tensor, sink: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    """o [T, H, E] and the log-sum-exp [T, H], with gradients."""
    found: tuple[Tensor, Tensor] = _Attend.apply(q, call.part.k, call.part.v, sink, call)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, eq=False)
class _Span:
    """KV heads that choose alike, `group` of the launch's; `scale` and `sink` are of their query heads, `heads` of q."""

    group: HeadGroup
    form: Form
    batch: Batch
    scale: float | Tensor
    cap: float | None
    sink: Tensor | None
    cache: LayerCache | None
    heads: slice

    def holds(self, one: Selector) -> bool:
        """Whether a choice is kept for several steps."""
        return bool(one.refresh) and self.batch.phase == "decode" and self.cache is not None and bool(one.held)

    def apart(self, choices: list[Selector]) -> bool:
        """Whether each of several queries of a sequence would see its own stretch, or its own distances."""
        stepwise = self.batch.phase == "decode" and self.batch.max_new > 1
        return stepwise and any(self.holds(one) or one.diagonals for one in choices)

    def longest(self, parts: tuple[KeyPart, ...]) -> int:
        """Tokens of the longest text, as far as parts have room for them."""
        return largest([max(0, base) + count for part in parts for base, count in zip(part.bases, part.counts, strict=True)])


def _softmax(kernels: Kernels, q: Tensor, part: KeyPart, span: _Span) -> Launch:
    """A launch that reads no lists."""
    table, factor = rows(alone(span.group), span.form, span.batch), head_scale(span.scale, q.shape[1], q.device)
    return lambda sink: kernels(q, part, table, span.form, span.batch, factor, span.cap, sink)


def _lists(
    making: ModuleType | None,
    one: Selector,
    q: Tensor,
    parts: tuple[KeyPart, ...],
    some: tuple[KeyPart, ...],
    span: _Span,
    holding: bool,
) -> tuple[LaunchLists, Tensor | None]:
    """The lists of a span, and after which position [S] all is seen too; `some`: its heads of the parts."""
    if making is None:
        return _by_torch(one, q, parts, span)
    rest = (span.form, span.batch, span.scale, span.cap, span.cache, span.heads)
    if not holding:
        return chosen_by_kernels(making, one, q, some, span.group, *rest), None
    assert span.cache is not None, "a choice is kept in a cache"
    return held(one, q, span.batch, span.cache, lambda fires: chosen_by_kernels(making, one, q, some, span.group, *rest, fires))


def _by_torch(one: Selector, q: Tensor, parts: tuple[KeyPart, ...], span: _Span) -> tuple[LaunchLists, Tensor | None]:
    """The lists that PyTorch makes, sequence by sequence."""
    batch, group, wide = span.batch, span.group, torch.promote_types(q.dtype, torch.float32)
    scale = span.scale.to(wide) if isinstance(span.scale, Tensor) else span.scale
    found = []
    for s, tokens in enumerate(torch.split(q, list(batch.sizes))):
        k, _, learned = text_keys(parts, group.first, group.last, s)
        numbers = Numbers.of(group, batch.totals[s], span.form.causal)
        asked = Asked(batch.pasts[s], batch.pasts[s] + batch.sizes[s], batch.totals[s], numbers, scale, span.cap)
        asker = Asker(tokens.transpose(0, 1), k[:, learned:], group.first, group.last, span.heads, s, batch, span.cache)
        found.append(lists_of(one, asker, asked))
    since = [lists.since for lists in found if lists.since is not None]
    if one.diagonals:
        return by_distance(found, BLOCK, batch), None
    return together(found, asked_by(one, batch.phase == "decode"), batch), torch.cat(since) if since else None


def _ungraded(choices: list[Selector]) -> bool:
    """Whether no kernel goes back over these choices."""
    return len(choices) > 1 or any(one.diagonals for one in choices)


def read_by(module: ModuleType, one: Selector) -> bool:
    """Whether a kernel file reads what a selector chooses."""
    members = 1 if one.shared == "head" else module.GROUP
    unit = BLOCK if one.diagonals else one.unit
    found: bool = (unit, members, one.diagonals) == (module.UNIT, module.MEMBERS, getattr(module, "DISTANCES", False))
    return found


def serves(module: ModuleType, q: Tensor, lists: LaunchLists) -> bool:
    """Whether a kernel file that reads lists reads these: one in Gluon those that many queries share, beside nothing taken."""
    found: bool = (module.BESIDE > 0) == (lists.taken is not None)
    if hasattr(module, "serves"):
        found = found and module.serves(q, lists)
    return found


def made_by(module: ModuleType, one: Selector) -> bool:
    """Whether a kernel file makes what a selector chooses."""
    found: bool = (
        *(one.unit, one.keys, one.span, one.step, one.score, one.lse),
        *(one.shared, one.heads, one.fold, one.overlap),
    ) == module.SELECTOR
    return found
