"""What built models and their kernels are given: odd shapes, strides and numbers are right, or an error says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import attnc
from attnc.codegen.build import Options, build, plan_all
from attnc.compiler import check_text, graph, passes
from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.batch import Batch
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near
from attnc.runtime.keys import KeyPart
from attnc.runtime.launch import Kernels
from attnc.runtime.mix import Mix, Variant
from attnc.runtime.operators import Functions

HEAD = "vocab = 32, dim = 32, heads = 4, kv_heads = 2, head_dim = 8, ffn = swiglu(32), norm = rms(1e-6), rope = 10000"
FORM = Form(1, 0, 0, True)
numbers = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "small"
    layers = "heads { 0: sink(2) | window(5), 1: stride(4) }"
    build(check_text(f"model m {{ {HEAD}, layers = 1 }}\nlayers {{ all: {layers} }}"), path, Options(seed=0))
    return path


@pytest.fixture(scope="module")
def folder_of_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "states"
    parts = (
        "linear(update = delta, decay = vector) { short_conv = 2 }",
        "memory(linear, chunk = 2)",
        "ssm(mamba)",
        "recurrent(gru)",
    )
    build(check_text(f"model m {{ {HEAD}, layers = 1 }}\nlayers {{ all: {' + '.join(parts)} }}"), path, Options(seed=0))
    return path


@pytest.fixture(params=["torch", "reference"])
def model(request: pytest.FixtureRequest, folder: Path) -> torch.nn.Module:
    return attnc.load(folder, use=request.param)


def texts(*shape: int) -> torch.Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("use", ["torch", "reference"])
@pytest.mark.parametrize("built", ["folder", "folder_of_states"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_empty_batches_empty_rows_and_one_token_run_and_train(
    shape: tuple[int, int], built: str, use: str, request: pytest.FixtureRequest
) -> None:
    model = attnc.load(request.getfixturevalue(built), use=use)
    logits = model(texts(*shape)).logits
    assert logits.shape == (*shape, 32)
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    with torch.no_grad():
        cache = model.new_cache(shape[0], 4)
        assert model(texts(*shape), cache=cache).logits.shape == logits.shape
        assert model(texts(shape[0], 1), cache=cache).logits.shape == (shape[0], 1, 32)


def test_sequences_of_no_tokens_change_nothing(model: torch.nn.Module) -> None:
    tokens = texts(1, 12)
    want = model(tokens, offsets=[0, 5, 12]).logits
    assert torch.equal(model(tokens, offsets=[0, 0, 5, 5, 5, 12, 12]).logits, want)
    assert torch.equal(model(torch.cat((tokens, tokens)), lengths=[12, 0]).logits[0], model(tokens).logits[0])


def test_whole_numbers_of_any_width_are_tokens(model: torch.nn.Module) -> None:
    want = model(texts(2, 9)).logits
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(model(texts(2, 9).to(dtype)).logits, want)
    assert torch.equal(model(texts(9, 2).to(torch.int16).T).logits, model(texts(9, 2).T.contiguous()).logits)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3), r"tokens \[B, N\] are integers, got torch.float32"),
        (torch.zeros(2, 3, dtype=torch.bool), r"tokens \[B, N\] are integers, got torch.bool"),
        (torch.zeros(3, dtype=torch.int64), r"expected tokens \[B, N\] or embeddings \[B, N, dim\], got shape \[3\]"),
        (torch.zeros(2, 3, 32, dtype=torch.float64), "embeddings are float64, the model is float32"),
        (torch.zeros(2, 3, 16), r"embeddings are \[B, N, 32\], got \[2, 3, 16\]"),
        (torch.zeros(2, 3, dtype=torch.int64, device="meta"), "tokens are on meta, the model is on cpu"),
        (torch.zeros(2, 3, 32, device="meta"), "embeddings are on meta, the model is on cpu"),
    ],
    ids=["floats", "truth", "one axis", "double", "narrow", "elsewhere", "embeddings elsewhere"],
)
def test_inputs_that_do_not_fit_are_named(inputs: torch.Tensor, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        attnc.load(folder)(inputs)


def test_a_cache_of_another_dtype_or_device_is_named(folder: Path) -> None:
    model = attnc.load(folder)
    cache = model.new_cache(2, 9)
    half = attnc.load(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        half(texts(2, 3), cache=cache)  # only its own keys are read
        with pytest.raises(ValueError, match="k is float32 and q bfloat16"):
            half(texts(2, 1), cache=cache)
    cache.lengths = cache.lengths.to("meta")
    with pytest.raises(ValueError, match="the cache is on meta, the model is on cpu"):
        model(texts(2, 3), cache=cache)


def test_not_a_number_stays_in_its_sequence_and_after_its_place(model: torch.nn.Module) -> None:
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(0))
    want = model(x, offsets=[0, 9, 20]).logits
    x[0, 4, 3] = math.nan
    got = model(x, offsets=[0, 9, 20]).logits
    assert torch.equal(got[:, 9:], want[:, 9:])
    assert torch.isnan(got[:, 4]).all()


def mix(provider: object) -> Mix:
    made = Mix("one", (Variant((HeadGroup(0, 0, near=(FULL,)), HeadGroup(1, 1, 1, (Near(back=3),)))),), causal=True, scale=0.3)
    made.providers = {"prefill": provider}
    return made


def test_strides_do_not_matter() -> None:
    launch = mix(torch_attention)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(12, heads, 8, generator=generator) for heads in (4, 2, 2))
    with torch.no_grad():
        _, batch = Batch.of(torch.zeros(1, 12, 1), offsets=[0, 3, 12])
        want = launch(q.double(), k.double(), v.double(), batch, None)
        own = (launch(q, k, v, batch, None) - want).abs().max()
        for odd in (lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), lambda x: x.repeat(1, 1, 2)[..., :8]):
            assert (launch(odd(q), odd(k), odd(v), batch, None) - want).abs().max() <= 1.5 * own
        fused = torch.cat((q, k, v), dim=1)
        assert (launch(fused[:, :4], fused[:, 4:6], fused[:, 6:], batch, None) - want).abs().max() <= 1.5 * own
        with pytest.raises(ValueError, match="v is float64 and q float32"):
            launch(q, k, v.double(), batch, None)


def plain(q: torch.Tensor, part: KeyPart, *_rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel's function, which sees what kernels can read."""
    assert q.stride(2) == 1
    assert part.k.is_contiguous()
    assert part.v.is_contiguous()
    return torch.ones(*q.shape[:2], part.v_width), torch.zeros(q.shape[:2])


Change = Callable[[dict], dict]


def called(change: Change) -> torch.Tensor:
    """The kernels' launch with some of its arguments exchanged."""
    kernels = Kernels(f"bad_{next(numbers)}", Functions(plain, plain, plain, plain), FORM, 4, 4, 2)
    _, batch = Batch.of(torch.ones(1, 5, 4))
    given = {
        "q": torch.ones(5, 2, 4),
        "part": batch.keys(torch.ones(5, 1, 4), torch.ones(5, 1, 4)),
        "rows": torch.zeros(1, 1, 5, dtype=torch.int32),
        "form": FORM,
        "batch": batch,
        "scale": torch.ones(2),
        "sink_logit": torch.ones(2),
    }
    return kernels(**given | change(given))[0]


BAD: dict[str, tuple[Change, str]] = {
    "heads": (lambda _: {"q": torch.ones(5, 3, 4)}, r"q is \[T, 2, 4\], got \[5, 3, 4\]"),
    "width": (lambda _: {"q": torch.ones(5, 2, 300)}, r"q is \[T, 2, 4\], got \[5, 2, 300\]"),
    "axes": (lambda _: {"q": torch.ones(5, 8)}, r"q is \[T, 2, 4\], got \[5, 8\]"),
    "double": (lambda _: {"q": torch.ones(5, 2, 4, dtype=torch.float64)}, "float32 in generated kernels, got float64"),
    "mixed": (lambda _: {"q": torch.ones(5, 2, 4, dtype=torch.bfloat16)}, "q is bfloat16, k is float32"),
    "v": (lambda g: {"part": replace(g["part"], v=g["part"].v.half())}, "q is float32, v is float16"),
    "v width": (lambda g: {"part": replace(g["part"], v_width=8)}, "k and v are 4 and 4 wide, got 4 and 8"),
    "device": (lambda g: {"part": replace(g["part"], k=g["part"].k.to("meta"))}, "q is on cpu, k on meta"),
    "scale": (lambda _: {"scale": torch.ones(1)}, r"scale is \[2\] float32, got \[1\] float32"),
    "half scale": (lambda _: {"scale": torch.ones(2).half()}, r"scale is \[2\] float32, got \[2\] float16"),
    "sink": (lambda _: {"sink_logit": torch.ones(4)}, r"sink_logit is \[2\], got \[4\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_launch_names_the_argument_that_does_not_fit(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        called(change)


def test_a_launch_takes_any_strides() -> None:
    assert called(lambda _: {"q": torch.ones(5, 4, 2).transpose(1, 2)}).shape == (5, 2, 4)
    assert called(lambda g: {"part": replace(g["part"], k=torch.ones(40)[::2])}).shape == (5, 2, 4)


def test_heads_wider_than_256_run_on_pytorch_and_the_plan_says_why(tmp_path: Path) -> None:
    spec = check_text(
        f"model m {{ {HEAD.replace('head_dim = 8', 'head_dim = 320')}, layers = 1 }}\nlayers {{ all: window(5) }}"
    )
    chosen = plan_all(passes.run(graph.build(spec)), Options())["cuda"].choices
    attends = [choice for choice in chosen if "window" in choice.node or choice.refused]
    assert any("256" in refusal.reason for choice in attends for refusal in choice.refused)
    build(spec, tmp_path / "wide", Options(seed=0))
    want, got = (
        attnc.load(tmp_path / "wide", dtype=torch.float64, use=way)(texts(2, 9)).logits for way in ("reference", "torch")
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
