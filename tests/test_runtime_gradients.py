"""Which kernel runs for how many queries, what has no gradient, and operators that are defined once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnc.runtime.batch import Batch
from attnc.runtime.intervals import Form
from attnc.runtime.keys import KeyPart
from attnc.runtime.launch import Kernels
from attnc.runtime.operators import Functions, name_of

FORM = Form(1, 0, 0, True)
Function = Callable[..., tuple[torch.Tensor, torch.Tensor]]
numbers = count()


def unreached(*_arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("this kernel must not run")


def plain(q: torch.Tensor, part: KeyPart, *_rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(q.shape[0], q.shape[1], part.v_width), torch.zeros(q.shape[:2])


def for_queries(q: torch.Tensor, *_rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(q.shape), torch.zeros(q.shape[:2])


def launch(
    prefill: Function = unreached, decode: Function = unreached, queries: Function = unreached, keys: Function = unreached
) -> Kernels:
    return Kernels(f"test_{next(numbers)}", Functions(prefill, decode, queries, keys), FORM, 4, 4, 1)


def call(kernels: Kernels, tokens: int = 5, *, rings: bool = False, wanted: str = "qkv") -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (torch.ones(tokens, 1, 4, requires_grad=name in wanted) for name in "qkv")
    _, batch = Batch.of(torch.ones(1, tokens, 4))
    part = batch.keys(k, v)
    if rings:
        part = replace(part, bands=tuple(replace(band, ring=8) for band in part.bands))
    return kernels(q, part, torch.zeros(1, 1, 5, dtype=torch.int32), FORM, batch, torch.ones(1))


def test_a_few_queries_run_decode_and_many_prefill() -> None:
    for tokens, kernels in ((16, launch(decode=plain)), (17, launch(prefill=plain))):
        o, lse = call(kernels, tokens)
        assert o.requires_grad
        assert lse.requires_grad
        assert not call(kernels, tokens, wanted="")[0].requires_grad
        with torch.no_grad():
            assert not call(kernels, tokens)[0].requires_grad


class Watch(TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Any] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(func)
        return func(*args, **(kwargs or {}))


def test_an_operator_runs_for_gradients_and_for_who_watches_operators() -> None:
    kernels = launch(decode=plain)
    operator, ran = kernels.operators.attend, []
    with torch.no_grad(), Watch() as watch:
        call(kernels)
    assert operator in watch.ran

    def noted(*arguments: Any) -> Any:
        ran.append(operator)
        return operator(*arguments)

    kernels.operators = kernels.operators._replace(attend=noted)
    with torch.no_grad():
        call(kernels)
    assert not ran
    call(kernels)
    assert ran


def test_gradients_through_a_ring_of_cached_keys_are_refused() -> None:
    o, _ = call(launch(decode=plain), rings=True)
    with pytest.raises(RuntimeError, match="train without a cache"):
        o.sum().backward()


def test_keys_that_want_no_gradient_cost_no_pass() -> None:
    o, _ = call(launch(decode=plain, queries=for_queries), wanted="q")
    o.sum().backward()


def test_there_is_no_second_derivative() -> None:
    q = torch.ones(5, 1, 4, requires_grad=True)
    _, batch = Batch.of(torch.ones(1, 5, 4))
    part = batch.keys(torch.ones(5, 1, 4), torch.ones(5, 1, 4))
    kernels = launch(decode=plain, queries=for_queries)
    o, _ = kernels(q, part, torch.zeros(1, 1, 5, dtype=torch.int32), FORM, batch, torch.ones(1))
    (grad,) = torch.autograd.grad(o.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), q)


def test_operators_are_defined_once_for_equal_kernels(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.py", "same.py", "other.py")]
    for file, text in zip(files, ("x = 1\n", "x = 1\n", "x = 2\n"), strict=True):
        file.write_text(text)
    one, same, other = (name_of([str(file)]) for file in files)
    assert one == same != other
    first = Kernels(one, Functions(plain, plain, unreached, unreached), FORM, 4, 4, 1)
    again = Kernels(same, Functions(unreached, unreached, unreached, unreached), FORM, 4, 4, 1)
    assert first.operators == again.operators
    call(again)
