"""`teacher = full`: a model of the same weights in which every layer is full, and the maps of both models' attention."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnc.codegen.build import Options, build
from attnc.codegen.importing import import_folder
from attnc.codegen.problem import complaint
from attnc.compiler.full import full
from attnc.compiler.spec import Mixer, Spec
from attnc.compiler.walk import attentions
from attnc.dsl import SpecError

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

Maps = dict[str, Tensor]
"""Place of a layer's softmax -> [S, H, N, N]."""


def full_spec(spec: Spec, file: str) -> Spec:
    """The spec with every layer full. Raises SpecError A578 for a layer without a softmax; `file` is what it points at."""
    known: dict[int, Mixer] = {}
    layers = []
    for layer in spec.layers:
        if not attentions(layer.mixer):
            message = f"layer {layer.index} has no softmax, so its weights make no full attention"
            raise SpecError([complaint("A578", message, file, "leave `teacher` and `distill` out of the recipe")])
        mixer = known.setdefault(id(layer.mixer), full(layer.mixer))  # layers of one rule hold one object
        layers.append(replace(layer, mixer=mixer))
    return replace(spec, layers=tuple(layers), budgets=(), recipe=None)


def teacher(spec: Spec, student: BuiltModel, place: Path, options: Options, file: str) -> BuiltModel:
    """The model of `full_spec` with the student's weights as they are now: frozen tensors shared, others copied.

    Its folder is written to `place`, which must stay while it runs. Raises SpecError A578 where its weights are not the
    student's.
    """
    weights = dict(student.named_parameters(remove_duplicate=False))
    device = next(iter(weights.values())).device
    build(full_spec(spec, file), place, options)
    package = import_folder(place)
    loading = importlib.import_module(f"{package.__name__}.runtime.load")
    kernels = importlib.import_module(f"{package.__name__}.kernels")
    model: BuiltModel = loading.without_numbers(package.Model)
    for name, empty in dict(model.named_parameters(remove_duplicate=False)).items():
        own = weights.get(name)
        if own is None or own.shape != empty.shape:
            message = f"the full model needs {name} {list(empty.shape)}, which the folder's model has not"
            raise SpecError([complaint("A578", message, file, "build the folder again from its spec")])
        parent, _, last = name.rpartition(".")
        numbers = own.detach().clone() if own.requires_grad else own.detach()
        setattr(model.get_submodule(parent), last, nn.Parameter(numbers, requires_grad=False))
    assert device == next(model.parameters()).device, "the teacher lies where the student lies"
    ready: BuiltModel = loading.ready(model, place, kernels.kernel)
    return ready.eval()


@contextmanager
def outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """The layers' outputs [T, W] of each call made meanwhile, in order."""
    found: list[Tensor] = []
    layers = model.get_submodule("model.layers")

    def remember(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(output)

    handles = [layer.register_forward_hook(remember) for layer in layers.children()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attention_maps(model: BuiltModel) -> Iterator[Maps]:
    """The attention maps of the call made meanwhile, whose sequences are equally long; learned keys are left out.

    The launches run on their references: maps are what kernels never write.
    """
    found: Maps = {}
    before = []
    for name, module in model.named_modules():
        for mix in getattr(module, "mixes", ()):
            for table in (mix.providers, mix.choosing):
                before.append((table, dict(table)))
                table["train"] = _recording(mix.reference, name, found)
    try:
        yield found
    finally:
        for table, providers in before:
            table.clear()
            table.update(providers)


def _recording(reference: Any, name: str, found: Maps) -> Callable[..., Tensor]:
    """The reference as a provider that also keeps its weights, beside those of the layer's launches before it."""

    def attend(q: Tensor, parts: Any, groups: Any, form: Any, batch: Any, *numbers: Any) -> Tensor:
        blocks: list[Tensor] = []

        def weights(logits: Tensor, visible: Tensor, sink_logit: Tensor | None) -> Tensor:
            made: Tensor = reference.weights(logits, visible, sink_logit)
            blocks.append(made[..., : batch.max_new])
            return made

        o: Tensor = replace(reference, weights=weights)(q, parts, groups, form, batch, *numbers)
        joined = _joined(blocks, batch.sequences, batch.max_new)
        earlier = found.get(name)
        found[name] = joined if earlier is None else torch.cat((earlier, joined), dim=1)
        return o

    return attend


def _joined(blocks: list[Tensor], sequences: int, tokens: int) -> Tensor:
    """Blocks [heads, queries, N], which come by sequence, then heads, then queries -> [S, H, N, N]."""
    rows: list[Tensor] = []
    block: list[Tensor] = []
    for one in blocks:
        block.append(one)
        if sum(part.shape[1] for part in block) == tokens:
            rows.append(torch.cat(block, dim=1))
            block = []
    assert not block, "blocks of queries cover each sequence"
    spans, rest = divmod(len(rows), sequences)
    assert not rest, "each sequence has the same heads"
    return torch.stack([torch.cat(rows[s * spans : (s + 1) * spans]) for s in range(sequences)])
