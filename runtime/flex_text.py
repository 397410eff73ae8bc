"""The text of a mask for flex_attention: the predicate of intervals.py with what all heads share written as constants.

The compiler of PyTorch keeps what it compiled beside a function's code, a few versions of each; so every distinct text has code
of its own, and a place in linecache: PyTorch 2.11 runs functions without a source inside one frame that all of them share, and
its few versions are soon used up. Tracebacks show the text too. A text holds numbers and the words of this file, nothing else.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .intervals import EMPTY, Form
from .sizes import UNBOUNDED

Table = Sequence[Sequence[Sequence[int]]]
"""The numbers of every sequence (or one row for all) and KV head, [S][G][R]."""

MASK = '''"""Which keys a query of a packed launch sees."""

import torch


def make(numbers, q_position, k_position, q_sequence, k_sequence):
    def visible(b, h, q, k):
        return {seen}

    return visible
'''

ATTEND = '''"""One launch over the mask {digest}."""

import torch
from torch.nn.attention.flex_attention import AuxRequest


def score_mod(score, b, h, q, k):
    return {cap!r} * torch.tanh(score / {cap!r})


def attend(flex, q, k, v, blocks, sink):
    o, aux = flex(
        q, k, v, score_mod={score_mod}, block_mask=blocks, scale={scale!r}, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    lse = aux.lse
    if sink is None:
        return o, lse
    sink = sink.to(lse.dtype).view(1, -1, 1)
    o = o * torch.sigmoid(lse - sink).unsqueeze(-1)
    return o.to(q.dtype), torch.logaddexp(lse, sink)
'''


@lru_cache(maxsize=256)
def attend_code(mask: str, scale: float, cap: float | None) -> Any:
    """attend(flex, q, k, v, blocks, sink) -> (o, lse), with code of its own for each mask, scale and cap."""
    text = ATTEND.format(digest=_digest(mask), scale=scale, cap=cap, score_mod=None if cap is None else "score_mod")
    return _run(text)["attend"]


@lru_cache(maxsize=256)
def mask_code(text: str) -> Any:
    """make(numbers, q_position, k_position, q_sequence, k_sequence) -> a mask of flex_attention."""
    return _run(text)["make"]


def _run(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    name = f"<flex {_digest(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), names)  # noqa: S102
    return names


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def mask_text(table: Table, form: Form, placed: tuple[bool, bool], several: bool, aligned: bool, learned: bool) -> str:
    """The module text of a mask.

    placed   whether the positions of queries, and of keys, are their numbers in the launch
    several  whether the launch holds several sequences
    aligned  whether queries and keys are the same tokens, so that positions differ as numbers in the launch do
    learned  whether some keys have negative positions, which every query sees
    """
    words = _Words(table, placed, several, aligned)
    seen = [text for text in _parts(words, form, learned) if text]
    union = "True" if "True" in seen else " | ".join(f"({text})" for text in seen)
    limits = [] if union == "True" else [f"({union})"]
    if not seen:
        limits = [f"({words.j} < {words.j})"]  # no key at all
    if form.causal:
        limits.append(f"({words.near_j} <= {words.near_i})")
    if several:
        limits.append("(q_sequence[q] == k_sequence[k])")
    return MASK.format(seen=" & ".join(limits) if limits else f"({words.j} >= {words.j})")


class _Words:
    """How the text names positions and the numbers of a row. `near_i`, `near_j` serve where only i - j counts."""

    def __init__(self, table: Table, placed: tuple[bool, bool], several: bool, aligned: bool) -> None:
        self.table = table
        self.i = "q" if placed[0] else "q_position[q]"
        self.j = "k" if placed[1] else "k_position[k]"
        self.near_i, self.near_j = ("q", "k") if aligned else (self.i, self.j)
        self.row = "numbers[q_sequence[q], h, {}]" if several and len(table) > 1 else "numbers[0, h, {}]"

    def number(self, column: int) -> int | str:
        """A constant where all rows agree, else where it stands."""
        found = {head[column] for heads in self.table for head in heads}
        return found.pop() if len(found) == 1 else self.row.format(column)


def _parts(words: _Words, form: Form, learned: bool) -> list[str]:
    sink = words.number(0)
    if learned and isinstance(sink, str):
        texts = [f"{words.j} < torch.where({sink} > 0, {sink}, 0)"]
    else:
        texts = [f"{words.j} < {sink}"] if learned or sink != 0 else []
    for at in range(1, 1 + 4 * form.nears, 4):
        texts.append(_near(words, tuple(words.number(at + column) for column in range(4)), form.causal))
    far = 1 + 4 * form.nears
    for at in range(far, far + form.strides):
        n, some = _count(words.number(at))
        texts.append(f"(({words.near_i} - {words.near_j}) % {n} == 0){some}")
    for at in range(far + form.strides, far + form.strides + form.powers):
        n, some = _count(words.number(at))
        apart = f"({_floor(words.i, n)} - {_floor(words.j, n)}).abs()"
        texts.append(f"(({apart} & ({apart} - 1)) == 0){some}")
    return texts


def _count(n: int | str) -> tuple[int | str, str]:
    """A divisor that is never 0, and what makes the part false where it was."""
    return (n, "") if isinstance(n, int) else (f"torch.where({n} > 0, {n}, 1)", f" & ({n} > 0)")


def _near(words: _Words, numbers: tuple[int | str, ...], causal: bool) -> str:
    """Empty for an interval without keys, `True` for one that holds all of them."""
    align, shift, back, ahead = numbers
    if numbers == EMPTY:
        return ""
    start, j = (
        (words.near_i, words.near_j)
        if (align, shift) == (1, 0)
        else (f"({_floor(f'{words.i} + {shift}', align)} * {align} - {shift})", words.j)
    )
    texts = [] if isinstance(back, int) and back >= UNBOUNDED else [f"({j} >= {start} - {back})"]
    if not causal and not (isinstance(ahead, int) and ahead >= UNBOUNDED):
        texts.append(f"({j} < {start} + {align} + {ahead})")
    return " & ".join(texts) or "True"


def _floor(number: str, n: int | str) -> str:
    """Positions that are divided are never negative: keys at negative ones are seen anyway."""
    return f'torch.div({number}, {n}, rounding_mode="trunc")'
