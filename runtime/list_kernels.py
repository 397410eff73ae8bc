"""Attention over keys that content chooses, by generated kernels: all sequences of a call at once, from lists on the device.

Legend: T new tokens of S sequences; H query heads, G KV heads; C choosers; E value width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from .attention_lists import OneSpan, attend_span
from .attention_torch import torch_attention
from .autocast import word
from .batch import Batch
from .choices import Asker, lists_of
from .intervals import Form, HeadGroup, rows
from .keys import KeyPart
from .launch import DTYPES, Kernels
from .list_call import Call, attend
from .list_choice import alone, chosen_by_kernels
from .list_chunks import chunk_part
from .list_dense import everything, seeing_all
from .list_holding import held, shown_since
from .list_launch import LaunchLists, Taken, asked_by, by_distance, together
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
        traced = torch.compiler.is_compiling()  # these launches are no operators
        if traced or span.apart(choices) or (torch.is_grad_enabled() and _ungraded(choices)):
            return self._by_torch(q, parts, span)
        dense = seeing_all(choices, span.batch)
        if dense is None:
            return self._chosen(choices, q, parts, some, span, makes)
        own, index = dense
        if index is None:
            return self._everything(choices[0], q, some, span)
        o = self._chosen(choices, q, parts, some, span, makes)
        return o.index_copy(0, index, self._everything(choices[0], q[index], some, replace(span, batch=own)))

    def _chosen(
        self,
        choices: list[Selector],
        q: Tensor,
        parts: tuple[KeyPart, ...],
        some: tuple[KeyPart, ...],
        span: _Span,
        makes: bool,
    ) -> Tensor:
        """Attention to all that a union shows, chooses and has summaries of."""
        launches = [self._over_chunks(one, q, parts, span) for one in span.group.choices if one.keys == "chunks"]
        launches += self._over_lists(choices, q, parts, some, span, makes)
        if not choices and self.shown is not None:
            launches += [_softmax(self.shown, q, part, span) for part in some]
        return _joined(launches, span.sink)

    def _everything(self, one: Selector, q: Tensor, some: tuple[KeyPart, ...], span: _Span) -> Tensor:
        """Attention to all earlier keys, by a file that reads what `one` chooses."""
        form = replace(span.form, nears=max(1, span.form.nears))
        table, nothing = everything(span.group, form, span.batch)
        return _joined(self._launches(one, q, some, span, table, form, nothing), span.sink)

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
            form = replace(span.form, nears=max(1, span.form.nears)) if one.refresh or one.all_seen else span.form
            table = rows(alone(span.group), form, span.batch)
            table = table if since is None else shown_since(table, form, span.batch, since)
            launches += self._launches(one, q, some, span, table, form, lists)
        return launches

    def _launches(
        self,
        one: Selector,
        q: Tensor,
        some: tuple[KeyPart, ...],
        span: _Span,
        table: Tensor,
        form: Form,
        lists: LaunchLists,
    ) -> list[Launch]:
        """Attention of each part to what rows and lists say, by the files that read what `one` chooses."""
        reads = next(file for file in self.reading if read_by(file, one) and serves(file, q, lists))
        goes_back = next((file for file in self.going_back if read_by(file, one)), None)
        factor = head_scale(span.scale, q.shape[1], q.device)
        calls = [Call(reads, goes_back, part, table, form, span.batch, factor, span.cap, lists) for part in some]
        return [partial(attend, q, call=call) for call in calls]

    @staticmethod
    def _by_torch(q: Tensor, parts: tuple[KeyPart, ...], span: _Span) -> Tensor:
        group = span.group
        own = OneSpan(group.first, group.last, group, span.form, span.scale, span.cap, span.sink)
        return attend_span(q, parts, own, span.batch, span.cache, span.heads)


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


def _joined(launches: list[Launch], sink: Tensor | None) -> Tensor:
    """One softmax over the keys of all launches; the sink logit goes to the first."""
    silent = None if sink is None else torch.full_like(sink, float("-inf"))
    o, lse = launches[0](sink)
    for launch in launches[1:]:
        o, lse = merge(o, lse, *launch(silent))
    return o


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
    one = replace(one, all_seen=None)  # such queries are read for apart
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
