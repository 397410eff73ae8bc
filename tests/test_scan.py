"""Matrix states by plain torch: chunks equal the formula, forms that mean the same agree, states are kept, bad input is said.

Errors: the formula's own float32 run says how far rounding goes, as in models.py.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FLOAT32, FLOAT64, rms

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_text
from attnc.compiler.mixers.recurrence import recurrence
from attnc.runtime import scan_fla
from attnc.runtime.batch import Batch
from attnc.runtime.cache import Cache, LayerPlan, State
from attnc.runtime.recurrence import States, Steps
from attnc.runtime.scan import MatrixStates, reference_scan
from attnc.runtime.scan_torch import torch_scan

FORMULA = reference_scan(recurrence)
DECAYS = ("none", "head", "scalar", "vector")
UPDATES = ("add", "normalize", "one strength", "two strengths")


def packed(sizes) -> Batch:
    offsets = [sum(sizes[:s]) for s in range(len(sizes) + 1)]
    return Batch.of(torch.zeros(1, sum(sizes), dtype=torch.int64), offsets=offsets)[1]


def draw(sizes, decay="vector", update="one strength", strong=1.0, seed=0, heads=4, rows=5, columns=3):
    """Steps and states before of random sequences; keys of the delta rule have length 1, as those of models have."""
    make = torch.Generator().manual_seed(seed)
    tokens, wide = sum(sizes), {"generator": make, "dtype": torch.float64}
    q, k = (torch.randn(tokens, count, rows, **wide) for count in (2, heads))
    v = torch.randn(tokens, 2, columns, **wide)
    shapes = {"none": None, "head": (heads,), "scalar": (tokens, heads), "vector": (tokens, heads, rows)}
    gates = None if shapes[decay] is None else -strong * torch.rand(shapes[decay], **wide)
    erase = write = None
    if update == "normalize":
        q, k = q.abs(), k.abs()
    if "strength" in update:
        k = k / k.norm(dim=-1, keepdim=True)
        erase = write = torch.rand(tokens, heads, **wide)
    if update == "two strengths":
        erase, write = torch.rand(tokens, heads, rows, **wide), torch.rand(tokens, heads, columns, **wide)
    steps = Steps(q, k, v, gates, erase, write, heads, 0.5, update == "normalize")
    matrix = torch.randn(len(sizes), heads, rows, columns, **wide)
    return steps, States(matrix, torch.rand(len(sizes), heads, rows, **wide) if steps.normalize else None)


def changed(value, change):
    """All tensors of steps or states mapped."""
    tensors = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: change(x) for name, x in tensors.items() if isinstance(x, torch.Tensor)})


def numbers(result):
    """Outputs and states after as one row."""
    o, after = result
    return torch.cat([o.flatten(), after.matrix.flatten(), *([] if after.sum is None else [after.sum.flatten()])]).double()


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([0, 1, 3, 17, 64, 65]), min_size=1, max_size=3),
    *(st.sampled_from(words) for words in (DECAYS, UPDATES)),
    st.sampled_from([0.0, 0.1, 50.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_chunks_are_the_formula(sizes, decay, update, strong, fresh, seed):
    """Keys have as many channels as a chunk has tokens: where they crowd in a few, they erase each other again and again, and a
    triangular solve rounds worse than single steps, whoever does it.
    """
    sizes = sizes if sum(sizes) > 16 else [*sizes, 40]  # enough numbers for an error to have a size
    batch, (steps, before) = packed(sizes), draw(sizes, decay, update, strong, seed, rows=64)
    before = None if fresh else before
    narrow = [None if one is None else changed(one, torch.Tensor.float) for one in (steps, before)]
    want = numbers(FORMULA(steps, before, batch))
    rounding = rms(numbers(FORMULA(*narrow, batch)) - want)
    assert rms(numbers(torch_scan(steps, before, batch)) - want) <= FLOAT64 * rounding
    assert rms(numbers(torch_scan(*narrow, batch)) - want) <= FLOAT32 * rounding


@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("update", UPDATES)
def test_gradients_are_those_of_the_formula(decay, update):
    """Of all that tokens bring and of the states before, through the outputs and the states after."""
    batch = packed([20, 0, 3])
    tangents = numbers(FORMULA(*draw([20, 0, 3], decay, update, seed=1), batch))
    found = []
    for scan in (FORMULA, torch_scan):
        leaves = []

        def leaf(x, leaves=leaves):
            leaves.append(x.clone().requires_grad_())
            return leaves[-1]

        steps, before = (changed(one, leaf) for one in draw([20, 0, 3], decay, update))
        found.append(torch.autograd.grad(numbers(scan(steps, before, batch)) @ tangents, leaves))
    for want, own in zip(*found, strict=True):
        torch.testing.assert_close(own, want, rtol=1e-11, atol=1e-11)


class Library:
    """flash-linear-attention as its docstrings describe it, by the formula: what is given where to whom is under test."""

    def __init__(self, name: str) -> None:
        self.name = name.removeprefix("fla.ops.")

    def __getattr__(self, name: str):
        room = name.removeprefix("chunk_").removeprefix("fused_recurrent_")
        assert room == self.name

        def run(q, k, v, *, g=None, gk=None, g_gamma=None, beta=None, b=None, w=None, scale, initial_state, **rest):
            assert (gk is None) == (name != "fused_recurrent_gla" or g is not None)
            decay = g if g is not None else gk if gk is not None else g_gamma
            assert decay is None or decay.dim() == {"simple_gla": 3, "gated_delta_rule": 3}.get(room, 4) or g_gamma is not None
            assert initial_state is None or initial_state.dtype == torch.float32
            bounds = rest["cu_seqlens"]
            sizes = [q.shape[1]] * q.shape[0] if bounds is None else bounds.diff().tolist()
            gates = (decay, beta if b is None else b, beta if w is None else w)
            flat = [x if x is None or x.dim() == 1 else x.flatten(0, 1) for x in (q, k, v, *gates)]
            before = None if initial_state is None else States(initial_state)
            o, after = FORMULA(Steps(*flat, heads=q.shape[2], scale=scale), before, packed(sizes))
            return o.unflatten(0, q.shape[:2]), after.matrix

        return run


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("sizes", [[20, 5, 33], [18, 18], [1, 1]])
def test_flash_linear_attention_is_given_what_it_asks_for(decay, update, sizes, monkeypatch):
    monkeypatch.setattr(scan_fla, "import_module", Library)
    batch = replace(packed(sizes), phase="decode" if max(sizes) == 1 else "train")
    steps, before = (changed(one, torch.Tensor.float) for one in draw(sizes, decay, update))
    want = numbers(FORMULA(steps, before, batch))
    torch.testing.assert_close(numbers(scan_fla.fla_scan(steps, before, batch)), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [FORMULA, torch_scan], ids=["formula", "torch"])
def test_forms_that_mean_the_same_agree(scan):
    sizes = [70]
    batch, (steps, before) = packed(sizes), draw(sizes, "scalar")

    def same(*others):
        want = numbers(scan(steps, before, batch))
        for other in others:
            torch.testing.assert_close(numbers(scan(other, before, batch)), want, rtol=1e-12, atol=1e-12)

    def spread(x, width):
        return x.unsqueeze(-1).expand(-1, -1, width)

    channels = replace(steps, decay=spread(steps.decay, 5))  # Kimi's rule with equal channels is gated DeltaNet
    same(channels, replace(channels, erase=spread(steps.erase, 5), write=spread(steps.write, 3)))  # and GDN-2 is Kimi's
    steps = replace(steps, decay=None)
    same(*(replace(steps, decay=torch.zeros(shape, dtype=torch.float64)) for shape in ((4,), (70, 4), (70, 4, 5))))
    sizes = [5]  # what was never written is not erased
    batch, (steps, _) = packed(sizes), draw(sizes, "scalar", "add")
    frames = torch.linalg.qr(torch.randn(4, 5, 5, dtype=torch.float64)).Q.transpose(0, 1)
    steps, before = replace(steps, k=frames.contiguous(), decay=None), None
    ones = torch.ones(5, 4, dtype=torch.float64)
    same(replace(steps, erase=ones, write=ones))


@pytest.mark.parametrize("decay", DECAYS[1:])
@pytest.mark.parametrize("update", ["normalize", "two strengths"])
def test_gates_that_shut_forget_all_and_stay_finite(decay, update):
    """A decay of -inf is 0, not NaN, and loses nothing of what comes after it."""
    batch, (steps, before) = packed([80]), draw([80], decay, update)
    shut = steps.decay.clone()
    shut[..., ::2] = -torch.inf if decay == "head" else shut[..., ::2]
    if decay != "head":
        shut[40] = -torch.inf
    steps = replace(steps, decay=shut)
    o, after = torch_scan(steps, before, batch)
    assert o.isfinite().all()
    torch.testing.assert_close(numbers((o, after)), numbers(FORMULA(steps, before, batch)), rtol=1e-12, atol=1e-12)


def test_a_sequence_without_tokens_keeps_its_state_and_no_other_sees_it():
    sizes = [5, 0, 66]
    steps, before = draw(sizes)
    o, after = torch_scan(steps, before, packed(sizes))
    assert torch.equal(after.matrix[1], before.matrix[1])
    tokens = [slice(0, 5), slice(5, 5), slice(5, 71)]
    for s, here in enumerate(tokens):
        own = changed(steps, lambda x, here=here: x[here]), changed(before, lambda x, s=s: x[s : s + 1])
        alone, state = torch_scan(*own, packed(sizes[s : s + 1]))
        torch.testing.assert_close(o[here], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after.matrix[s], state.matrix[0], rtol=1e-12, atol=1e-12)


def launch(**given) -> MatrixStates:
    states = MatrixStates("one", 4, scale=0.5, formula=recurrence, **given)
    states.providers = dict.fromkeys(("train", "prefill", "decode"), torch_scan)
    return states


BAD = {
    "q and k of other widths": ({"k": lambda x: x[..., :4]}, r"k is \[6, a divisor of 4, 5\], got \[6, 4, 4\]"),
    "heads that do not divide": ({"v": lambda x: x[:, :1].expand(-1, 3, -1)}, r"v is \[6, a divisor of 4, 3\]"),
    "dtypes": ({"v": torch.Tensor.float}, "v is float32, q float64"),
    "a gate of another width": (
        {"decay": lambda x: x[..., :2]},
        r"decay is one of \[\[6, 4\], \[6, 4, 5\], \[4\]\], got \[6, 4, 2\]",
    ),
    "a gate above zero": ({"decay": lambda x: x + 2}, "decay is logarithms, none above 0"),
    "a gate that is NaN": ({"decay": lambda x: x * torch.nan}, "decay is logarithms.*nan"),
    "a strength above 2": ({"erase": lambda x: x + 2}, "erase is a strength of 0..2"),
    "a strength below 0": ({"write": lambda x: -x}, "write is a strength of 0..2"),
    "one strength alone": ({"write": lambda _: None}, "erase and write are given together"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name):
    changes, message = BAD[name]
    steps, _ = draw([6])
    given = {field: getattr(steps, field) for field in ("q", "k", "v", "decay", "erase", "write")}
    given |= {field: change(given[field]) for field, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        launch()(*(given.pop(field) for field in "qkv"), packed([6]), None, **given)


def test_under_autocast_q_k_and_v_have_its_dtype_and_gates_stay_as_written():
    steps, _ = draw([40])
    q, k, v, decay, strength = (x.float() for x in (steps.q, steps.k, steps.v, steps.decay, steps.erase))
    with torch.autocast("cpu", torch.bfloat16):
        got = launch()(q, k, v, packed([40]), None, decay, strength, strength)
    want = launch()(*(x.bfloat16() for x in (q, k, v)), packed([40]), None, decay, strength, strength)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)


def test_a_state_of_another_shape_is_refused():
    cache = Cache([LayerPlan(states=(State("state", (4, 3, 3)),))], 1, 10, torch.float64)
    cache._set((2,))
    batch = Batch.of(torch.zeros(1, 6, dtype=torch.int64), cache)[1]
    steps, _ = draw([6])
    with pytest.raises(ValueError, match=r"state is \[1, 4, 5, 3\], got \[1, 4, 3, 3\]"):
        launch()(steps.q, steps.k, steps.v, batch, cache.layer(0))


MODEL = (
    "model m { vocab = 32, dim = 32, layers = 1, heads = 4, head_dim = 8, ffn = none, norm = rms(1e-6) }\n"
    "layers { all: linear(update = delta, decay = scalar) { short_conv = 3, qk_norm = l2 } }"
)


def failing(x):
    raise ZeroDivisionError


def test_a_cache_of_states_goes_back_by_snapshots_and_to_nothing(tmp_path):
    build(check_text(MODEL), tmp_path / "out", Options(seed=0))
    model = attnc.load(tmp_path / "out", dtype=torch.bfloat16)
    texts = torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 20)
    assert {name: state.dtype for name, state in cache.layer(0).states.items()} == {
        "state": torch.float32,
        **dict.fromkeys(("q_conv", "k_conv", "v_conv"), torch.bfloat16),
    }
    first = model(texts[:, :9], cache=cache).logits
    kept = cache.snapshot()
    then = model(texts[:, 9:], cache=cache).logits
    cache.restore(kept)
    model.model.norm.forward = failing  # behind every layer
    with pytest.raises(ZeroDivisionError):
        model(texts[:, 9:], cache=cache)
    del model.model.norm.forward
    assert torch.equal(model(texts[:, 9:], cache=cache).logits, then)  # a call that fails leaves the states as they were
    with pytest.raises(RuntimeError, match="A507"):  # the folder's own CacheError
        cache.crop(5)
    cache.crop((12, 0))
    again = model(texts[:, :9], cache=cache, lengths=[0, 9]).logits
    assert torch.equal(again[1], first[1])


def test_weights_start_as_published(tmp_path):
    layers = (
        "0: linear(update = delta, decay = scalar) { short_conv = 4 }, 1: linear(decay = vector, feature = hedgehog),"
        "2: linear(feature = favor)"
    )
    build(
        check_text(MODEL.replace("layers = 1", "layers = 3").partition("\n")[0] + f"layers {{ {layers} }}"),
        tmp_path / "out",
        Options(seed=0),
    )
    weights = attnc.load(tmp_path / "out").state_dict()
    for layer, least in ((0, 0.0), (1, 1.0)):
        rates = weights[f"model.layers.{layer}.mixer.linear.A_log"].exp()
        assert rates.min() > least
        assert rates.max() < 16
        steps = torch.nn.functional.softplus(weights[f"model.layers.{layer}.mixer.linear.dt_bias"])
        assert steps.min() > 0.99e-3
        assert steps.max() < 0.101
    taps = weights["model.layers.0.mixer.linear.v_conv.weight"]
    assert 0.45 < taps.abs().max() < 0.5  # of torch.nn.Conv1d with 4 taps a channel
    assert torch.equal(weights["model.layers.1.mixer.linear.q_feature"], torch.eye(8).expand(4, 8, 8))
    directions = weights["model.layers.2.mixer.linear.favor"][:8]
    products = directions @ directions.T
    torch.testing.assert_close(products, torch.diag(products.diagonal()), rtol=1e-5, atol=1e-5)
