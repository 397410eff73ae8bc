"""The inputs that a kernel is tried on, in classes that each catch another sort of mistake.

A prefill or backward kernel reads its tokens' own keys, a decode kernel a cache's. In Triton's interpreter a program of a few
blocks takes tens of milliseconds, so there sizes are small and each case has few heads; over the classes all sorts occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from attnc.codegen.verify.cases import FULL, Case, KeySet, Union
from attnc.compiler.families import BACKWARD, Softmax

DECODE = "softmax_decode"
LARGE = 40.0
"""Factor of queries whose softmax is nearly one-hot."""


@dataclass(frozen=True)
class Sizes:
    """What a machine can bear.

    unit     the sorts of key sets are a few times as long
    text     tokens of a sequence that has many
    longest  of a sequence that shows a model's own key sets
    heads    query heads of a case
    """

    unit: int
    text: int
    longest: int
    heads: int


ON_GPU = Sizes(unit=64, text=300, longest=4096, heads=64)
IN_INTERPRETER = Sizes(unit=8, text=37, longest=45, heads=4)


def sorts(kernel: Softmax, unit: int) -> tuple[Union, ...]:
    """Heads of every sort that the kernel can serve, in one launch."""
    u = unit
    near = [(FULL,), ((1, 0, 2 * u - 1, 0),), ((u, 0, 3 * u, 0),), ((4 * u, u, 0, 0),)] if kernel.nears else [()]
    heads = [Union(nears=part) for part in near]
    heads += [Union(sink=u + 6, nears=part) for part in near[1:2]]
    heads += [Union(nears=((1, 0, u // 2 - 1, 0), (2 * u, 0, 0, 2 * u))[: kernel.nears])] if kernel.nears else []
    heads += [Union(strides=(n,)) for n in (max(2, u // 8), 5 * u + 13)] if kernel.strides else []
    heads += [Union(sink=3, nears=near[1] if kernel.nears else (), strides=(8 * u,))] if kernel.strides else []
    heads += [Union(powers=(n,)) for n in (u // 4, u + u // 2 + 4)] if kernel.powers else []
    heads += [Union(strides=(4 * u + 44,), powers=(u,))] if kernel.strides and kernel.powers else []
    return tuple(heads) or (Union(sink=u // 2 + 8),)


def lonely(kernel: Softmax) -> tuple[Union, ...]:
    """Heads whose queries see one key, or none."""
    return (Union(), Union(nears=((1, 0, 0, 0),)) if kernel.nears else Union(sink=1), Union(sink=1))


def cases(
    skeleton: str,
    kernel: Softmax,
    own: Sequence[tuple[KeySet, ...]],
    blocks: Sequence[int],
    dtype: torch.dtype,
    device: str,
    sizes: Sizes,
) -> dict[str, tuple[Case, ...]]:
    """Class -> its cases. `own`: the heads of each launch and variant that the kernel serves, as built and made shorter;
    `blocks`: lengths that the kernel cuts sequences into.
    """
    every, text = sorts(kernel, sizes.unit), sizes.text
    decodes = skeleton == DECODE

    def case(heads: Sequence[KeySet], lengths: Sequence[int], pasts: Sequence[int], turn: int, **more: Any) -> Case:
        picked = _some(heads, max(1, sizes.heads // kernel.group), turn)
        return Case(kernel, picked, tuple(lengths), tuple(pasts), dtype=dtype, device=device, cache=decodes, **more)

    if decodes:
        spots = {
            "random": ((1, 5), (text, text // 4)),
            "large logits": ((2,), (text,)),
            "few keys": ((1, 3), (0, text)),
            "block edges": ((1, 1, 2) * len(blocks), tuple(past for b in blocks for past in (b - 2, b - 1, b - 1))),
            "packed": ((1, 0, 16, 3), (0, 9, text, sizes.unit - 1)),
            "integers": ((7,), (text,)),
        }
    else:
        edges = tuple(length for b in blocks for length in (b - 1, b, b + 1))
        spots = {
            "random": ((text,), (0,)),
            "large logits": ((text // 2, 3), (0, 0)),
            "few keys": ((1, text // 2), (0, 0)),
            "block edges": (edges, (0,) * len(edges)),
            "packed": ((1, 0, text // 2, text + 1), (0, 0, 3, 0)),
            "integers": ((text,), (0,)),
        }
    exact: list[dict[str, Any]] = [{"integers": True, "magnitude": 0.0}, {"found": True}]
    exact = exact[: 2 if kernel.head_width >= 12 else 1]  # in fewer columns the keys cannot all differ
    found = {
        "random": (case(every, *spots["random"], 0), case(every, *spots["random"], 1, seed=1)),
        "large logits": (case(every, *spots["large logits"], 2, magnitude=LARGE),),
        "few keys": tuple(case(lonely(kernel), *spots["few keys"], turn) for turn in (0, 1)),
        "block edges": (case(every, *spots["block edges"], 3),),
        "packed": (case(every, *spots["packed"], 4),),
        "integers": tuple(case(every, *spots["integers"], turn, **more) for turn, more in enumerate(exact)),
    }
    if kernel.exponent is not None:  # weights of softplus scores are powers of numbers: nothing is exact or one-hot
        del found["large logits"], found["integers"]
    if skeleton not in BACKWARD:
        found["cached"] = _cached(case(every, *spots["random"], 5), decodes, sizes)
    shown = tuple(
        case(heads, *_long(heads, decodes, skeleton in BACKWARD, sizes), turn) for turn, heads in enumerate(own) if heads
    )
    return found | ({"own heads": shown} if shown else {})


def _some(heads: Sequence[KeySet], most: int, turn: int) -> tuple[KeySet, ...]:
    """At most so many of the heads, others in every turn."""
    first = turn * most % len(heads)
    return tuple([*heads, *heads][first : first + min(most, len(heads))])


def _cached(like: Case, decodes: bool, sizes: Sizes) -> tuple[Case, ...]:
    """A cache with rings; before a chunk of a prompt it holds the past alone."""
    ring = 2 * sizes.unit + 16
    rings = tuple((sizes.unit // 2, ring) if index % 2 == 0 else None for index in range(len(like.unions)))
    if decodes:
        return (replace(like, keeps=rings), replace(like, keeps=rings, pasts=(3, ring + 5)))
    pasts = (2 * sizes.text,) * len(like.sizes)
    return (
        replace(like, cache=True, written=False, pasts=pasts),
        replace(like, cache=True, written=False, pasts=pasts, keeps=rings),
        replace(like, pasts=pasts),
    )


def _long(heads: Sequence[KeySet], decodes: bool, backward: bool, sizes: Sizes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(new tokens, past): twice as far as the heads reach, within what the machine can bear."""
    longest = sizes.longest // 4 if backward and sizes.longest > 1024 else sizes.longest
    reach = max(head.reach() for head in heads)
    length = min(longest, max(sizes.text, 2 * reach + 5))
    return ((1, 4), (length, length // 3)) if decodes else ((length,), (0,))
