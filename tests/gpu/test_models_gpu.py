"""Whole built models on a GPU: generated kernels against the float64 reference, beside PyTorch's own attention."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import rms
from test_table import STATIC

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_path
from attnc.compiler.reduce import reduce
from attnc.compiler.spec import Spec
from attnc.compiler.walk import first_leaf

SPECS = Path(__file__).parents[2] / "specs"
LENGTH, PROMPT = 96, 40


def made(folder: Path, dtype: torch.dtype, way: str, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The folder's model on the GPU with the same weights in every dtype."""
    model = attnc.load(folder, "cuda", dtype, way)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def weights_of(folder: Path, spec: Spec) -> dict[str, torch.Tensor]:
    """Weights that make scores and outputs of about 1, rounded to bfloat16 so that every dtype holds them exactly.

    Of models with memories those that a build draws: keys of length 1 and more let fast weights grow without end.
    """
    learns = "memory(" in spec.text
    torch.manual_seed(0)
    found = {}
    for name, parameter in attnc.load(folder, "cpu", torch.float64).named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64)
        number = noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else parameter.detach() + 0.3 * noise
        number = parameter.detach() if learns else number
        found[name] = number.to(torch.bfloat16).double()
    return found


@torch.no_grad()
def logits(model: torch.nn.Module, texts: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(whole prefill, prompt in two chunks and then `step` tokens a call)."""
    cache = model.new_cache(len(texts), LENGTH)
    cuts = [0, PROMPT - 18, PROMPT, *range(PROMPT + step, LENGTH, step), LENGTH]
    pieces = [model(texts[:, a:b], cache, total_lengths=PROMPT).logits for a, b in pairwise(cuts)]
    return model(texts).logits, torch.cat(pieces, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", STATIC)
def test_a_built_spec_on_its_kernels_is_as_near_to_float64_as_on_torch(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    small, _ = reduce(check_path(SPECS / f"{name}.attn"), 32)
    causal = all(first_leaf(layer.mixer).attributes.causal for layer in small.layers)
    build(small, tmp_path / "built", Options(seed=0))
    weights = weights_of(tmp_path / "built", small)
    texts = torch.randint(0, small.model.vocab, (2, LENGTH), device="cuda")
    runs = {way: made(tmp_path / "built", dtype, way, weights) for way in ("triton", "torch")}
    runs["float64"] = made(tmp_path / "built", torch.float64, "reference", weights)
    for step in (1, 5) if causal else ():
        outcome = {way: logits(model, texts, step) for way, model in runs.items()}
        for phase in (0, 1):
            errors = {way: rms(outcome[way][phase] - outcome["float64"][phase]) for way in ("triton", "torch")}
            assert errors["triton"] <= 1.5 * errors["torch"], (name, dtype, step, phase, errors)
    if not causal:
        with torch.no_grad():
            errors = {way: rms(runs[way](texts).logits - runs["float64"](texts).logits) for way in ("triton", "torch")}
        assert errors["triton"] <= 1.5 * errors["torch"], (name, dtype, errors)


def trained(model: torch.nn.Module, texts: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every parameter for the mean loss of the next token."""
    logits = model(texts[:, :-1]).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())
    names, parameters = zip(*((name, x) for name, x in model.named_parameters() if x.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", STATIC)
def test_a_built_spec_trains_on_its_kernels_as_near_to_float64_as_on_torch(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    small, _ = reduce(check_path(SPECS / f"{name}.attn"), 32)
    build(small, tmp_path / "built", Options(seed=0))
    weights = weights_of(tmp_path / "built", small)
    texts = torch.randint(0, small.model.vocab, (2, LENGTH), device="cuda")
    exact = trained(made(tmp_path / "built", torch.float64, "reference", weights), texts)
    errors = {}
    for way in ("triton", "torch"):
        found = trained(made(tmp_path / "built", dtype, way, weights), texts)
        relative = [rms(found[key] - want) / rms(want) for key, want in exact.items() if rms(want) > 0]
        errors[way] = sum(part**2 for part in relative) ** 0.5
    assert errors["triton"] <= 1.5 * errors["torch"], (name, dtype, errors)
