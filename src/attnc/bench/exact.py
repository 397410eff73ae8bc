"""What must come out, in float64, for some rows of a work; and how far from it rounding alone may lead.

Nothing is timed before it has been compared: the result of some queries, spread over the text, and the gradients that they
alone give to all keys. Rounding is that of a fused kernel (FlashAttention-2, arXiv 2307.08691): products of numbers in the
launch's dtype, sums and weights in float32, weights rounded before they are multiplied, and the gradients of keys rounded once
for each query head, as PyTorch does where it repeats keys. An error may be twice that: so much tells another mask or a broken
kernel from rounding. Tests hold our kernels to more.

Legend: T tokens; R rows that are compared; H query heads on G KV heads; D key width; E value width; L keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.bench.work import Work
from attnc.compiler.mixers.softmax import softplus_weights

ROWS = 24
"""Queries of a sequence that are compared."""

FACTOR = 2.0

Found = dict[str, Tensor]
"""o [R, H, E], and for the backward pass q [R, H, D], k and v [sequences, L, G, width], sink_logit [H]: gradients."""


@dataclass(frozen=True)
class Sample:
    """The rows that are compared: all of the same places in some of the sequences.

    sequences  which of them; positions their queries' places, rising; tokens the same in the packed [T]
    """

    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What is right, and the root mean square error that rounding may make, by name.

    sample  what is compared; o_grad [T, H, E], what gradients are taken of for it, of the backward pass alone
    """

    sample: Any
    exact: Found
    allowed: dict[str, float]
    o_grad: Tensor | None = None


def answer(work: Work) -> Answer:
    """Computes both, one KV head at a time."""
    chosen = sample(work)
    exact = _found(work, chosen, None)
    rounded = _found(work, chosen, work.q.dtype)
    o_grad = None if work.o_grad is None else only(work.o_grad, chosen)
    return Answer(chosen, exact, {name: FACTOR * rms(rounded[name], want) for name, want in exact.items()}, o_grad)


def sample(work: Work) -> Sample:
    """The first queries, the last, and some between at odd distances; of the first and the last sequence."""
    sequences = tuple(sorted({0, work.sequences - 1}))
    if work.phase == "decode":
        return Sample(sequences, (work.length - 1,), sequences)
    count = min(ROWS, work.length)
    spread = {int((at + (at * 0.618033988749895) % 1.0) * work.length / count) for at in range(count)}
    positions = tuple(sorted(spread | {0, work.length - 1}))
    return Sample(sequences, positions, tuple(s * work.length + i for s in sequences for i in positions))


def only(o_grad: Tensor, chosen: Sample) -> Tensor:
    """`o_grad` [T, H, E] with zeros at all rows but the sample's, so that they alone make the gradients."""
    rows = torch.tensor(chosen.tokens, device=o_grad.device)
    return torch.zeros_like(o_grad).index_copy(0, rows, o_grad[rows])


def errors(work: Work, right: Answer, got: Found) -> dict[str, float]:
    """Root mean square errors of a participant's results, which are whole: o [T, H, E], k [T, G, D] and so on."""
    rows = torch.tensor(right.sample.tokens, device=work.q.device)
    whole = torch.tensor(right.sample.sequences, device=work.q.device)
    found = {}
    for name, value in got.items():
        want = right.exact[name]
        if name in ("o", "q"):
            part = value[rows]
        elif name in ("k", "v"):
            part = value.view(work.sequences, work.length, *value.shape[1:])[whole]
        else:
            part = value
        assert part.shape == want.shape, f"{name}: {list(part.shape)}, not {list(want.shape)}"
        found[name] = rms(part, want)
    return found


def rms(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference; NaN wherever there is one."""
    return float((got.double() - want.double()).square().mean().sqrt())


def _found(work: Work, chosen: Sample, dtype: torch.dtype | None) -> Found:
    """In float64, or (`dtype`) as a fused kernel rounds."""
    launch, many = work.launch, len(chosen.sequences)
    wide = torch.float64 if dtype is None else torch.float32
    device, rows = work.q.device, len(chosen.positions)
    o = torch.zeros(many, rows, launch.heads, launch.value_width, dtype=wide, device=device)
    found = {"o": o}
    if work.o_grad is not None:
        found["q"] = torch.zeros(many, rows, launch.heads, launch.key_width, dtype=wide, device=device)
        for name, width in (("k", launch.key_width), ("v", launch.value_width)):
            found[name] = torch.zeros(many, work.length, launch.kv_heads, width, dtype=wide, device=device)
        if work.sink_logit is not None:
            found["sink_logit"] = torch.zeros(launch.heads, dtype=torch.float64, device=device)
    for at, sequence in enumerate(chosen.sequences):
        for group, head, k, v, j in _heads(work, sequence):
            _head(work, chosen, (at, sequence, group, head), (k.to(wide), v.to(wide), j), found, dtype)
    for name in ("o", "q"):
        if name in found:
            found[name] = found[name].flatten(0, 1)
    if dtype is not None:
        found = {name: value if name == "sink_logit" else value.to(dtype) for name, value in found.items()}
    return found


def _heads(work: Work, sequence: int) -> Iterator[tuple[object, int, Tensor, Tensor, Tensor]]:
    """(group, KV head, k [L, D], v [L, E], their positions [L]) of a sequence."""
    for first, last, group in work.spans:
        runs = work.part.read(first, last, sequence)
        k, v = (torch.cat(x, dim=2)[0] for x in ([run.k for run in runs], [run.v for run in runs]))
        j = torch.cat([torch.arange(run.start, run.start + run.k.shape[2], device=k.device) for run in runs])
        for at, head in enumerate(range(first, last + 1)):
            yield group, head, k[at], v[at], j


def _head(
    work: Work,
    chosen: Sample,
    place: tuple[int, int, object, int],
    keys: tuple[Tensor, Tensor, Tensor],
    found: Found,
    dtype: torch.dtype | None,
) -> None:
    """Adds what one KV head of one sequence gives; its query heads lie one after another, as if they were one's rows."""
    at, sequence, group, head = place
    k, v, j = keys
    repeat, rows = work.launch.repeat, len(chosen.positions)
    mine = slice(head * repeat, (head + 1) * repeat)
    first = chosen.sequences.index(sequence) * rows
    tokens = torch.tensor(chosen.tokens[first : first + rows], device=k.device)
    q = work.q[tokens, mine].to(k.dtype).transpose(0, 1).flatten(0, 1)  # [R', D]
    i = torch.tensor(chosen.positions, device=k.device)
    seen = work.visible(group, i, j).repeat(repeat, 1)
    sink = None if work.sink_logit is None else work.sink_logit[mine].to(k.dtype).repeat_interleave(rows)[:, None]
    grad = None
    if work.o_grad is not None:
        grad = work.o_grad[tokens, mine].to(k.dtype).transpose(0, 1).flatten(0, 1)
    exponent, numbers = work.launch.exponent, (work.launch.mix.scale, work.launch.mix.cap)
    if exponent is None:
        parts = attention(q, k, v, seen, *numbers, sink, grad, dtype, repeat)
    else:
        parts = softplus(q, k, v, seen, *numbers, exponent, grad, dtype, repeat)
    for name in ("o", "q"):
        if name in parts:
            found[name][at, :, mine] = parts[name].view(repeat, rows, -1).transpose(0, 1)
    for name in ("k", "v"):
        if name in parts:
            found[name][at, :, head] += parts[name].sum(0)
    if "sink_logit" in parts:
        found["sink_logit"][mine] += parts["sink_logit"].view(repeat, rows).sum(1, dtype=torch.float64)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float,
    cap: float | None,
    sink: Tensor | None,
    grad: Tensor | None,
    dtype: torch.dtype | None,
    repeat: int = 1,
) -> Found:
    """Softmax attention of q [R, D] over k [L, D], v [L, E] and its gradients for grad [R, E], by the formulas.

    seen [R, L]; sink [R, 1], a logit without a value. `dtype` rounds what a fused kernel multiplies; None rounds nothing. The
    rows are those of `repeat` query heads, one head's after another's: gradients of k and v are [repeat, L, width].
    """

    def stored(x: Tensor) -> Tensor:
        return x if dtype is None else x.to(dtype).to(x.dtype)

    logits = (q @ k.T) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    hidden = logits.masked_fill(~seen, float("-inf"))
    sums = (hidden if sink is None else torch.cat((hidden, sink), 1)).logsumexp(1, keepdim=True)
    weight = torch.exp(hidden - sums.masked_fill(torch.isneginf(sums), 0.0))
    o = stored(stored(weight) @ v)
    if grad is None:
        return {"o": o}
    delta = (o * grad).sum(1, keepdim=True)
    change = weight * (grad @ v.T - delta) * scale
    if cap is not None:
        change = change * (1 - (logits / cap) ** 2)
    heads = [x.view(repeat, -1, x.shape[1]) for x in (stored(change), stored(weight), q, grad)]
    change_of, weight_of, q_of, grad_of = heads
    found = {"o": o, "q": stored(change) @ k}
    found |= {"k": stored(change_of.transpose(1, 2) @ q_of), "v": stored(weight_of.transpose(1, 2) @ grad_of)}
    if sink is not None:
        found["sink_logit"] = -(torch.exp(sink - sums) * delta).squeeze(1)
    return found


def softplus(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float,
    cap: float | None,
    exponent: float,
    grad: Tensor | None,
    dtype: torch.dtype | None,
    repeat: int = 1,
) -> Found:
    """The same with re-weighted softplus masses (softplus_weights), whose gradients are PyTorch's; `dtype` rounds weights."""

    def stored(x: Tensor) -> Tensor:
        return x if dtype is None else x.to(dtype).to(x.dtype)

    with torch.enable_grad():
        leaves = [q.view(repeat, -1, q.shape[1]), *(x.expand(repeat, *x.shape) for x in (k, v))]
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        logits = (leaves[0] @ leaves[1].mT) * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        weight = softplus_weights(logits, seen.view(repeat, -1, len(k)), None, exponent=exponent)
        o = stored(weight) @ leaves[2]
    found = {"o": stored(o.detach().flatten(0, 1))}
    if grad is None:
        return found
    q_grad, k_grad, v_grad = torch.autograd.grad(o, leaves, grad.view_as(o))
    return found | {"q": q_grad.flatten(0, 1), "k": stored(k_grad), "v": stored(v_grad)}
