"""Nets that learn while they read: the formula against gradients written out, chunks against the formula, bad input."""

from __future__ import annotations

from types import SimpleNamespace

import memory_formulas
import pytest
import torch

from attnc.compiler.mixers.fast_weights import fast_weights
from attnc.compiler.mixers.memory import Learned, Memory, Mlp, Swiglu, net_shapes
from attnc.compiler.mixers.recurrence import recurrence

HEADS, D, E = 2, 4, 3
WIDE = {"dtype": torch.float64}
RATE = Learned()
RULES = {
    "linear": Memory(net="linear", chunk=5),
    "linear, read after": Memory(net="linear", chunk=5, momentum=RATE, decay=RATE, read="after_write"),
    "two maps": Memory(net=Mlp(expand=2), chunk=4, momentum=RATE, decay=RATE),
    "two maps, all": Memory(
        net=Mlp(expand=2), chunk=5, momentum=0.9, decay=RATE, read="after_write", error="after_decay", weight_norm="row"
    ),
    "normed": Memory(net=Mlp(expand=1), chunk=6, lr=0.3, residual=True, norm="layer", read="after_write"),
    "gated": Memory(net=Swiglu(expand=2), chunk=5, momentum=RATE, weight_norm="row", error="after_decay", decay=0.1),
    "gated, read after": Memory(net=Swiglu(expand=1), chunk=3, lr=None, decay=Learned(per="head"), read="after_write"),
    "one map, token by token": Memory(net=Mlp(depth=1), chunk=1, decay=RATE, error="after_decay"),
    "three maps": Memory(net=Mlp(depth=3, expand=1), chunk=70, momentum=RATE, decay=RATE, norm="layer"),
}


def rule_of(kind, **changed):
    """What the formula is told of a kind."""
    found = {
        "chunk": kind.chunk,
        "gated": isinstance(kind.net, Swiglu),
        "after_write": kind.read == "after_write",
        "after_decay": kind.error == "after_decay",
        "weight_norm": kind.weight_norm == "row",
        "residual": kind.residual,
    }
    return SimpleNamespace(**found | changed)


def draw(kind, sizes, seed=0):
    """q, k, v, the three rates, the first weights, and the norm's; an absent rate counts once, or not at all."""
    make = torch.Generator().manual_seed(seed)
    tokens, values = sizes, D if kind.residual else E
    q, k = (torch.randn(tokens, HEADS, D, generator=make, **WIDE) / 2 for _ in "qk")
    v = torch.randn(tokens, HEADS, values, generator=make, **WIDE)
    rates = []
    for rate, none, most in ((kind.lr, 1.0, 0.3), (kind.momentum, 0.0, 0.9), (kind.decay, 0.0, 0.3)):
        gates = most * torch.rand(tokens, HEADS, generator=make, **WIDE)
        if isinstance(rate, Learned):
            rates.append(gates[:1].expand(tokens, HEADS) if rate.per == "head" else gates)
        else:
            rates.append(torch.full((tokens, HEADS), none if rate is None else float(rate), **WIDE))
    shapes = net_shapes(kind, SimpleNamespace(heads=HEADS, head_dim=D, value_dim=values))
    start = {name: torch.randn(shape, generator=make, **WIDE) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    norm = tuple(torch.randn(HEADS, values, generator=make, **WIDE) for _ in range(2)) if kind.norm else None
    return q, k, v, rates, start, norm


@pytest.mark.parametrize("name", RULES)
def test_the_formula_is_that_of_gradients_written_out(name):
    kind = RULES[name]
    q, k, v, rates, start, norm = draw(kind, 13)
    o, _, _ = fast_weights(q, k, v, rates, start, rule_of(kind), norm)
    for h in range(HEADS):
        w, own = [one[h] for one in start.values()], None if norm is None else [one[h] for one in norm]
        want = memory_formulas.head(kind, w, own, q[:, h], k[:, h], v[:, h], [rate[:, h] for rate in rates])
        torch.testing.assert_close(o[:, h], want, rtol=1e-11, atol=1e-11)


def test_one_map_after_decay_is_the_gated_delta_rule():
    """lr = strength / 2, as the squared distance has no 1 / 2 (arXiv 2412.06464)."""
    kind = RULES["one map, token by token"]
    q, k, v, rates, start, _ = draw(kind, 9)
    lr, _, decay = rates
    o, after, _ = fast_weights(q, k, v, rates, start, rule_of(kind, after_write=True))
    state = start["map_0"].transpose(1, 2)
    want, state, _ = recurrence(q, k, v, torch.log1p(-decay), erase=2 * lr, write=2 * lr, state=state)
    torch.testing.assert_close(o, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(after["map_0"], state.transpose(1, 2), rtol=1e-11, atol=1e-11)
