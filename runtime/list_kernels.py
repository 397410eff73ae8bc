"""Attention over keys that content chooses, by generated kernels: all sequences of a call at once, from lists on the device.

Legend: T new tokens of S sequences; H query heads, G KV heads; C choosers; E value width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from .attention_torch import torch_attention
from .autocast import word
from .batch import Batch
from .choices import Asker, lists_of
from .intervals import Form, HeadGroup, rows
from .keys import KeyPart
from .launch import DTYPES
from .list_choice import alone, chosen_by_kernels
from .list_launch import LaunchLists, asked_by, together
from .operators import device_of
from .pooled import text_keys
from .selecting import Asked
from .selector import Selector
from .softmax import ListProvider, head_scale, merge
from .spans import Numbers, exact, head_spans
from .storage import LayerCache


@dataclass(frozen=True)
class ListKernels:
    """The kernel files of a launch: those that read lists, one for each size of units, and those that make them."""

    reading: tuple[ModuleType, ...]
    making: tuple[ModuleType, ...]

    @classmethod
    def of(cls, modules: Sequence[ModuleType]) -> ListKernels:
        """The files in any order."""
        making = tuple(one for one in modules if hasattr(one, "choose"))
        return cls(tuple(one for one in modules if one not in making), making)

    def provider(self, makes: bool) -> ListProvider:
        """Attention by kernels; `makes`: lists too where a file makes them, else by PyTorch. Without gradients."""

        def attend(
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

        return attend

    def _span(self, q: Tensor, parts: tuple[KeyPart, ...], some: tuple[KeyPart, ...], span: _Span, makes: bool) -> Tensor:
        """q [T, H, D] of the span's heads -> [T, H, E]; `some`: its heads of the parts."""
        (one,) = span.group.choices
        with torch.no_grad():
            making = next((module for module in self.making if makes and made_by(module, one)), None)
            lists = _by_torch(one, q, parts, span) if making is None else _by_kernels(making, one, q, some, span)
        module = next(module for module in self.reading if read_by(module, one))
        table = rows(alone(span.group), span.form, span.batch)
        factor = head_scale(span.scale, q.shape[1], q.device)
        q = q if q.stride(-1) == 1 else q.contiguous()
        silent = None if span.sink is None else torch.full_like(span.sink, float("-inf"))
        with device_of(q):
            results = [
                module.attend(q, part, table, span.form, span.batch, factor, span.cap, sink, lists)
                for part, sink in zip(some, (span.sink, *[silent] * (len(some) - 1)), strict=True)
            ]
        o: Tensor = results[0][0]
        lse: Tensor = results[0][1]
        for more in results[1:]:
            o, lse = merge(o, lse, *more)
        return o


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


def _by_kernels(module: ModuleType, one: Selector, q: Tensor, some: tuple[KeyPart, ...], span: _Span) -> LaunchLists:
    """The lists that kernels make; `some`: the span's heads of the parts."""
    rest = (span.form, span.batch, span.scale, span.cap, span.cache, span.heads)
    return chosen_by_kernels(module, one, q, some, span.group, *rest)


def _by_torch(one: Selector, q: Tensor, parts: tuple[KeyPart, ...], span: _Span) -> LaunchLists:
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
    assert all(lists.since is None for lists in found), "no kernel reads tokens that are seen until the next choice"
    return together(found, asked_by(one, batch.phase == "decode"), batch)


def read_by(module: ModuleType, one: Selector) -> bool:
    """Whether a kernel file reads what a selector chooses."""
    members = 1 if one.shared == "head" else module.GROUP
    found: bool = (one.unit, members) == (module.UNIT, module.MEMBERS)
    return found


def made_by(module: ModuleType, one: Selector) -> bool:
    """Whether a kernel file makes what a selector chooses."""
    found: bool = (
        *(one.unit, one.keys, one.span, one.step, one.score, one.lse),
        *(one.shared, one.heads, one.fold, one.overlap),
    ) == module.SELECTOR
    return found
