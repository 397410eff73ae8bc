"""Built models on their generated kernels in Triton's interpreter: compiled, checkpointed, and in another dtype.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attnc
from attnc.codegen.build import Options, build
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.cases import Case, Inputs, Union
from attnc.codegen.verify.cases import build as build_inputs
from attnc.compiler import check_text
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.launch import Kernels

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

TEXT = """model small {
  vocab = 32, dim = 32, layers = 2, heads = 2, kv_heads = 1, head_dim = 16, ffn = swiglu(32), norm = rms(1e-6), rope = 10000,
  sink_logit = learned
}
layers { 0: window(8), 1: sink(2) | window(5) }
"""
SOFTPLUS = """model small {
  vocab = 32, dim = 32, layers = 1, heads = 2, kv_heads = 1, head_dim = 16, ffn = none, norm = rms(1e-6)
}
layers { all: sink(2) | window(5) { score = softplus(exponent = 3), qk_norm = l2 } }
"""
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))


def made(text: str = TEXT) -> torch.nn.Module:
    folder = FOLDER / ("built" if text == TEXT else "softplus")
    if not folder.exists():
        build(check_text(text, "small.attn"), folder, Options(seed=0))
    return attnc.load(folder, use="triton")


def texts(length: int) -> torch.Tensor:
    return torch.randint(0, 32, (2, length), generator=torch.Generator().manual_seed(length))


def trained(model: torch.nn.Module, call: object, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The logits, and the gradient of every parameter."""
    logits = call(tokens).logits
    return [logits, *torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_compiled_model_has_the_same_bits_and_one_graph_for_all_lengths() -> None:
    model, graphs = made(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for length in (9, 12, 7):
        assert same(trained(model, model, texts(length)), trained(model, compiled, texts(length)))
    assert len([graph for graph in graphs if len(graph.graph.nodes)]) == 1, "an attempt that was begun anew is left empty"


def test_a_compiled_model_of_two_launches_a_layer_has_the_same_bits() -> None:
    model = made(SOFTPLUS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (20, 21):
        assert same(trained(model, model, texts(length)), trained(model, compiled, texts(length)))


def test_a_checkpointed_model_has_the_same_gradients() -> None:
    model = made()
    want = trained(model, model, texts(18))
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    assert same(want, trained(model, model, texts(18)))
    assert same(want, trained(model, torch.compile(model, fullgraph=True, backend="aot_eager"), texts(18)))


def test_a_model_trains_under_autocast() -> None:
    model = made()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.float16):
        want = trained(model, model, texts(18))
        assert want[0].dtype == torch.float16
        assert same(want, trained(model, compiled, texts(18)))
    assert all(gradient.dtype == torch.float32 for gradient in want[1:])
    exact = attnc.load(FOLDER / "built", dtype=torch.float64, use="reference")
    whole = trained(exact, exact, texts(18))
    assert 0 < (want[0].double() - whole[0]).abs().max() < 0.05 * whole[0].abs().max()


def launch() -> tuple[Kernels, Inputs]:
    """A launch with every argument that may have a gradient, and its inputs."""
    form = Softmax(1, head_width=16, value_width=16, sink_logit=True)
    files = [load(emit(name, form), FOLDER, f"checked_{name}") for name in FAMILIES["softmax"]]
    return Kernels.of(*files), build_inputs(Case(form, (Union(nears=((1, 0, 6, 0),)),), (18, 3), (0, 0)))


def arguments(inputs: Inputs) -> tuple[object, ...]:
    """The operator's."""
    q, part, rows, _, batch, scale, cap, sink = inputs.arguments
    places = [batch.offsets, batch.past, part.k_begin, part.v_begin, part.stored, part.base, part.pinned, part.ring]
    sizes = [part.k_stride, part.v_stride, batch.max_new, part.max_stored, part.max_slots]
    k, v = (torch.nan_to_num(x).requires_grad_() for x in (part.k, part.v))  # checks compare storages, poison and all
    leaves = (q.clone().requires_grad_(), k, v)
    return (*leaves, scale, rows, places, sizes, part.rings, part.shared, cap, sink.clone().requires_grad_())


def test_the_operators_are_what_pytorch_asks_of_operators() -> None:
    kernels, inputs = launch()
    given = arguments(inputs)
    torch.library.opcheck(kernels.operators.attend, given)
    with torch.no_grad():
        o, lse = kernels.operators.attend(*given)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in given[:-1]]
    later = ("test_schema", "test_faketensor")
    queries = (*plain, o, lse, torch.ones_like(o), torch.zeros_like(lse))
    torch.library.opcheck(kernels.operators.backward_queries, queries, test_utils=later)
    _, delta = kernels.operators.backward_queries(*queries)
    torch.library.opcheck(kernels.operators.backward_keys, (*plain, lse, delta, torch.ones_like(o)), test_utils=later)
