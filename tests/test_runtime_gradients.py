"""Which kernel runs where gradients are wanted or not, and what has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnc.runtime.batch import Batch
from attnc.runtime.gradients import Kernels
from attnc.runtime.keys import KeyPart


def unreached(*_arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("this kernel must not run")


def plain(q: torch.Tensor, part: KeyPart, *_rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(q.shape[0], q.shape[1], part.v_width), torch.zeros(q.shape[:2])


def call(launch: Kernels, *, rings: bool = False, wanted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.ones(5, 1, 4, requires_grad=wanted)
    _, batch = Batch.of(torch.ones(1, 5, 4))
    part = batch.keys(x, x)
    if rings:
        part = replace(part, bands=tuple(replace(band, ring=8) for band in part.bands))
    return launch(x, part, torch.zeros(1, 1, 5), None, batch, torch.ones(1))


def test_a_few_queries_run_decode_unless_gradients_are_wanted() -> None:
    call(Kernels(unreached, plain, unreached, unreached), wanted=False)
    with torch.no_grad():
        call(Kernels(unreached, plain, unreached, unreached))
    o, lse = call(Kernels(plain, unreached, unreached, unreached))
    assert o.requires_grad
    assert lse.requires_grad


def test_gradients_through_a_ring_of_cached_keys_are_refused() -> None:
    o, _ = call(Kernels(plain, unreached, unreached, unreached), rings=True)
    with pytest.raises(RuntimeError, match="train without a cache"):
        o.sum().backward()
