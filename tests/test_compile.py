"""Built models under torch.compile, activation checkpointing and torch.autocast: the bits of plain runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_text
from attnc.runtime.batch import Batch
from attnc.runtime.intervals import FULL, HeadGroup, Near
from attnc.runtime.keys import persistent_keys
from attnc.runtime.mix import Guard, Mix, Variant
from attnc.runtime.sizes import Share

HEAD = "vocab = 32, dim = 32, heads = 4, kv_heads = 2, head_dim = 8, ffn = swiglu(32), norm = rms(1e-6), rope = 10000"
SPECS = {
    "mixed": (2, "heads { 0: sink(2) | window(5), 1: stride(4) }", "full { sink_logit = learned }"),
    "handed": (2, "window(6)", "window(6) { qk_from = previous }"),
    "states": (
        3,
        "linear(update = delta, decay = vector) { qk_norm = l2, short_conv = 3 }",
        "linear(decay = vector, key = one_minus_decay, lower_bound = learned)",
        "linear(decay = slopes, feature = taylor(2), normalize = sum) { rope = 100 }",
    ),
    "guarded": (1, "when { length < 24: full, else: window(8) }"),
}
Results = list[torch.Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before counts against the number of graphs that a test may make."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    top = tmp_path_factory.mktemp("built")

    def folder(name: str) -> Path:
        count, *layers = SPECS[name]
        if not (top / name).exists():
            cases = ", ".join(f"{at}: {layer}" for at, layer in enumerate(layers))
            build(check_text(f"model m {{ {HEAD}, layers = {count} }}\nlayers {{ {cases} }}"), top / name, Options(seed=0))
        return top / name

    return folder


def texts(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 32, (rows, length), generator=torch.Generator().manual_seed(length))


def trained(model: torch.nn.Module, call: Callable, tokens: torch.Tensor, **rest: object) -> Results:
    """The logits, and the gradient of every parameter."""
    logits = call(tokens, **rest).logits
    return [logits.detach(), *torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))]


def same(one: Results, other: Results) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "way", "lengths"),
    [("mixed", "torch", (20, 33)), ("mixed", "reference", (20,)), ("handed", "torch", (20,)), ("guarded", "torch", (20, 33))],
)
def test_a_compiled_model_has_the_same_bits(name: str, way: str, lengths: tuple[int, ...], folders: Callable) -> None:
    model = attnc.load(folders(name), use=way)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in lengths:
        assert same(trained(model, model, texts(length)), trained(model, compiled, texts(length)))
    if len(lengths) == 1:
        with torch.no_grad():
            assert torch.equal(model(texts(20)).logits, compiled(texts(20)).logits)


def test_a_compiled_model_takes_lengths_and_offsets_as_lists(folders: Callable) -> None:
    model = attnc.load(folders("mixed"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for tokens, rest in ((texts(20), {"lengths": [20, 7]}), (texts(20, 1), {"offsets": [0, 3, 3, 20]})):
        assert same(trained(model, model, tokens, **rest), trained(model, compiled, tokens, **rest))


@pytest.mark.parametrize("name", ["mixed", "handed", "states"])
def test_checkpointed_layers_have_the_same_gradients(name: str, folders: Callable) -> None:
    model, tokens = attnc.load(folders(name)), texts(20)
    want = trained(model, model, tokens)
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    assert same(want, trained(model, model, tokens))
    whole = attnc.load(folders(name))
    assert same(want, trained(whole, partial(checkpoint, whole, use_reentrant=False), tokens))
    if name != "handed":  # with `qk_from` a layer hands q and k on beside its result, which a compiled checkpoint cannot
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert same(want, trained(model, compiled, tokens))


def test_a_compiled_model_has_the_same_bits_under_autocast(folders: Callable) -> None:
    model, tokens = attnc.load(folders("mixed")), texts(20)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        plain, got = trained(model, model, tokens), trained(model, compiled, tokens)
    assert plain[0].dtype == torch.bfloat16
    assert same(plain, got)
    assert not torch.equal(plain[0].float(), model(tokens).logits)


def mix(cap: float | None = None) -> Mix:
    """One launch with heads of two sorts and a guard."""
    few = Variant((HeadGroup(0, 1, near=(FULL,), visible=lambda i, j, _: j <= i),), (Guard("length", "<", 4),))
    near, share = (
        HeadGroup(0, 0, 1, (Near(back=4),), visible=visible),
        HeadGroup(1, 1, near=(Near(back=Share(50)),), visible=half),
    )
    return Mix("one", (few, Variant((near, share))), causal=True, scale=0.3, cap=cap)


def visible(i: torch.Tensor, j: torch.Tensor, _length: int) -> torch.Tensor:
    return ((i - j <= 4) | (j < 1)) & (j <= i)


def half(i: torch.Tensor, j: torch.Tensor, length: int) -> torch.Tensor:
    return (i - j <= Share(50).of(length)) & (j <= i)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("way", ["torch", "reference"])
def test_under_autocast_a_launch_takes_its_dtype_and_computes_all_else_as_written(way: str, cap: float | None) -> None:
    """As PyTorch's own attention: fp32 and bf16 mixed come out as if all had been bf16, products within stay as wide."""
    from attnc.runtime.attention_torch import torch_attention

    launch = mix(cap)
    launch.providers = {"prefill": torch_attention if way == "torch" else launch.reference}
    generator = torch.Generator().manual_seed(0)
    q, k, v, pk, pv = (
        torch.randn(*shape, generator=generator) for shape in ((30, 4, 8), *((30, 2, 8),) * 2, *((3, 2, 8),) * 2)
    )
    sink = torch.randn(4, generator=generator)
    with torch.no_grad():
        _, batch = Batch.of(torch.zeros(1, 30, 1), offsets=[0, 3, 9, 30])
        low = [x.bfloat16() for x in (q, k, v, pk, pv)]
        want = launch(*low[:3], batch, None, sink, persistent_keys(*low[3:], 3))
        with torch.autocast("cpu", torch.bfloat16):
            got = launch(q, low[1], v, batch, None, sink, persistent_keys(pk, pv, 3))
            assert torch.equal(launch(*(x.double() for x in (q, k, v)), batch, None), launch_off(launch, q, k, v, batch))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)


def launch_off(launch: Mix, *tensors: object) -> torch.Tensor:
    """The launch in float64 without autocast."""
    *qkv, batch = tensors
    with torch.autocast("cpu", enabled=False):
        return launch(*(x.double() for x in qkv), batch, None)


def test_a_cache_made_under_autocast_has_its_dtype_and_decodes_as_the_whole_text(folders: Callable) -> None:
    model, tokens = attnc.load(folders("mixed")), texts(20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(2, 20)
        assert cache.layer(0).k.dtype == torch.bfloat16
        own = [model(piece, cache=cache).logits for piece in tokens.split([14, 1, 5], dim=1)]
        other = Cache32.of(model)
        wide = [model(piece, cache=other).logits for piece in tokens.split([14, 1, 5], dim=1)]
        exact = attnc.load(folders("mixed"), dtype=torch.float64)
    with torch.no_grad():
        want = exact(tokens).logits
        error = (model.bfloat16()(tokens).logits.double() - want).square().mean().sqrt()
    for found in (own, wide):
        assert (torch.cat(found, 1).double() - want).square().mean().sqrt() <= 1.5 * error


class Cache32:
    """A cache in float32, made outside autocast."""

    @staticmethod
    def of(model: torch.nn.Module) -> object:
        with torch.autocast("cpu", enabled=False):
            cache = model.new_cache(2, 20)
        assert cache.layer(0).k.dtype == torch.float32
        return cache
