"""`randomize = budgets`: every step draws each budget anew, and the numbers of the launches follow; nothing is built again.

The compiler says the numbers: the spec is checked with the drawn values, and what its launches would hold replaces what the
loaded model's launches hold. Shapes and kernels stay as they were built. A draw takes a few milliseconds.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from attnc.codegen import module as modules
from attnc.codegen.attending import WORDS
from attnc.codegen.eager import emit as eager
from attnc.codegen.eager.emit import Masks
from attnc.codegen.launching import launch
from attnc.codegen.parts import Part
from attnc.codegen.problem import complaint
from attnc.compiler import check, graph, passes
from attnc.compiler.budget_text import Draw, drawn, sites, with_values
from attnc.compiler.graph import Apply, Graph, Mix, RouteTokens
from attnc.compiler.mixers import MIXERS
from attnc.compiler.parameters import place
from attnc.compiler.spec import Spec
from attnc.dsl import Source, SpecError, parse

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

TRIES = 1000
"""Draws until one passes the checker: of a window in blocks, one in as many as a block has tokens does."""


CHUNK = re.compile(r"\bRule\(\d+")
"""Where the text of a class says the tokens of a chunk."""


class Numbers(NamedTuple):
    """What a layer's softmax computes with: the variants and scale of each launch, the alternatives of a route; or the tokens
    of a chunk of fast weights.
    """

    launches: tuple[tuple[Any, float], ...]
    alternatives: tuple[Any, ...]
    chunk: int | None = None


class Budgets:
    """The budgets of a model's spec. `file` is what errors point at."""

    def __init__(self, model: BuiltModel, spec: Spec, file: str, seed: int) -> None:
        """Raises SpecError A570 for a budget whose ends would need other shapes, code or kernels than those that were built."""
        self.model, self.file, self.seed = model, file, seed
        self.tree = parse(Source(spec.file, spec.text))
        spec = check(self.tree)  # whose lines are those of the tree
        self.sites = tuple(sites(self.tree, spec))
        if not self.sites:
            message = "every budget of the spec decides shapes or layers, and none can be drawn while training"
            raise SpecError([complaint("A570", message, file, "leave `randomize` out")])
        self.passed: dict[tuple[tuple[int, float], ...], Spec | None] = {}
        self.found: dict[tuple[tuple[int, float], ...], dict[tuple[int, str], Numbers]] = {}
        self.namespace = _names(model)
        self.places = list(self._numbers(spec))
        built = _signature(spec)
        for site in self.sites:
            for end in (site.low, site.high):
                fits = self.checked({site.number: end})
                if fits is not None and (_signature(fits) != built or not self._fit(self._numbers(fits))):
                    message = f"budget({site.low:g}..{site.high:g}) decides more than numbers of a launch"
                    help_line = "keep its range where the layers and their key sets stay as they are, or leave `randomize` out"
                    raise SpecError([complaint("A570", f"{message}, so it cannot be drawn while training", file, help_line)])

    def checked(self, draw: Draw) -> Spec | None:
        """The spec with these values; None where the checker refuses them."""
        key = tuple(sorted(draw.items()))
        if key not in self.passed:
            try:
                self.passed = {key: check(with_values(self.tree, draw))}  # the last one alone: it is asked for twice
            except SpecError:
                self.passed = {key: None}
        return self.passed[key]

    def draw(self, step: int) -> dict[int, float]:
        """Draws every budget for this step and puts the numbers into the model; returns the values of those drawn once."""
        values = self._values(step, "")
        once = {site.number for site in self.sites if not site.per}
        for layer, part in self.places:
            per_layer = values | self._apart(step, "layer", layer)
            heads = [site for site in self.sites if site.per == "head"]
            if not heads or not hasattr(self._module(layer, part), "mixes"):
                self._put(layer, part, [self.numbers(per_layer)[layer, part]])
                continue
            count = max(group.last + 1 for mix in self._module(layer, part).mixes for group in mix.variants[0].groups)
            apart = [per_layer | self._apart(step, "head", layer, head) for head in range(count)]
            self._put(layer, part, [self.numbers(draw)[layer, part] for draw in apart])
        return {number: value for number, value in values.items() if number in once}

    def numbers(self, draw: Draw) -> dict[tuple[int, str], Numbers]:
        """The numbers of every layer with these values, which the checker takes."""
        key = tuple(sorted(draw.items()))
        if key not in self.found:
            spec = self.checked(draw)
            assert spec is not None, "only draws that were checked"
            self.found = {key: self._numbers(spec)}  # the last one alone: a step's layers mostly share it
        return self.found[key]

    def _values(self, step: int, *who: object) -> dict[int, float]:
        """A draw that the checker takes, from the seed, the step and whom it is for."""
        digest = hashlib.sha256(f"{self.seed} {step} {who}".encode()).digest()
        source = random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311 (no secrets)
        for _ in range(TRIES):
            draw = {site.number: drawn(site, source) for site in self.sites}
            if self.checked(draw) is not None:
                return draw
        message = f"none of {TRIES} draws of its budgets passes the checker"
        raise SpecError([complaint("A570", message, self.file, "narrow the ranges, so that sizes divide")])

    def _apart(self, step: int, per: str, *who: int) -> dict[int, float]:
        """The values of the budgets that are drawn for each layer or head."""
        mine = {site.number for site in self.sites if site.per == per}
        return {n: value for n, value in self._values(step, per, *who).items() if n in mine} if mine else {}

    def _module(self, layer: int, part: str) -> Any:
        return self.model.get_submodule(f"model.layers.{layer}.{part}")

    def _put(self, layer: int, part: str, found: Sequence[Numbers]) -> None:
        """Into the layer; `found` for all heads at once, or for each."""
        module, first = self._module(layer, part), found[0]
        for at, mix in enumerate(getattr(module, "mixes", ())):
            mix.variants, mix.scale = first.launches[at]
            if len(found) > 1:
                mix.variants = tuple(
                    replace(variant, groups=type(variant.groups)(_of_heads([one.launches[at][0][v] for one in found])))
                    for v, variant in enumerate(mix.variants)
                )
        if first.chunk is not None:
            module.scan.rule = replace(module.scan.rule, chunk=first.chunk)
        if first.alternatives:
            module.route = replace(module.route, alternatives=first.alternatives)

    def _fit(self, numbers: Mapping[tuple[int, str], Numbers]) -> bool:
        """Whether the kernels of the launches can say these numbers."""
        for (layer, part), found in numbers.items():
            mixes = getattr(self._module(layer, part), "mixes", ())
            for mix, (variants, _) in zip(mixes, found.launches, strict=True):
                form = type(mix.form).of([group for variant in variants for group in variant.groups], mix.form.causal)
                if any(getattr(form, name) > getattr(mix.form, name) for name in ("nears", "strides", "powers")):
                    return False
        return True

    def _numbers(self, spec: Spec) -> dict[tuple[int, str], Numbers]:
        found = passes.run(graph.build(spec))
        text, visible = eager.emit(found)
        reference = ModuleType("reference")
        exec(compile(text, "<reference>", "exec"), vars(reference))  # noqa: S102 (written by the compiler from checked values)
        names = self.namespace | {"reference": reference}
        known: dict[int, dict[str, Numbers]] = {}
        for layer in spec.layers:
            if id(layer.mixer) not in known:
                known[id(layer.mixer)] = dict(_of_layer(found, layer.index, spec, visible, names))
        return {(one.index, part): numbers for one in spec.layers for part, numbers in known[id(one.mixer)].items()}


def compiles_numbers(model: BuiltModel, kind: str) -> bool:
    """Whether a launch trains by flex_attention, which compiles the numbers of a launch into its mask."""
    planned = [phases["train"] for phases in model.providers.get(kind, {}).values()]
    return any(one == "flex" or (not isinstance(one, str) and "flex" in [part[0] for part in one]) for one in planned)


def _of_layer(found: Graph, layer: int, spec: Spec, visible: Masks, names: dict[str, Any]) -> Iterator[tuple[str, Numbers]]:
    """Place of each softmax and each launch of fast weights of a layer, and its numbers."""
    nodes = [node for _, node in found.nodes(layer)]
    for apply in (node for node in nodes if isinstance(node, Apply)):
        taught = MIXERS[apply.kind.kind].taught
        if taught is not None:
            yield place(apply), Numbers((), (), taught(apply.kind, apply.attributes, spec.model).chunk)
    for part in dict.fromkeys(place(node) for node in nodes if isinstance(node, Mix | RouteTokens)):
        here = [node for node in nodes if isinstance(node, Mix | RouteTokens) and place(node) == part]
        launches, alternatives = [], []
        for node in here:
            if isinstance(node, RouteTokens):
                last, causal = node.attributes.kv_heads - 1, node.attributes.causal
                alternatives += [
                    f"HeadGroup(0, {last}, visible=reference.{visible[keys, causal]})" for keys in node.alternatives
                ]
                continue
            text = launch(node, "", spec.model, visible)
            groups = [(", ".join(group.text for group in one.groups), one.guards) for one in text.variants]
            variants = ", ".join(f"Variant(HeadGroups(({inner},)), ({guards}{',' * bool(guards)}))" for inner, guards in groups)
            launches.append(f"(({variants},), {text.scale})")
        source = f"(({', '.join(launches)}{',' * bool(launches)}), ({', '.join(alternatives)}{',' * bool(alternatives)}))"
        yield part, Numbers(*eval(source, dict(names)))  # noqa: S307 (written by the compiler from checked values)


def _names(model: BuiltModel) -> dict[str, Any]:
    """The words of the folder's runtime that a launch is written in."""
    runtime = f"{type(model).__module__.rpartition('.')[0]}.runtime"
    found: dict[str, Any] = {}
    for file, words in WORDS.items():
        inside = importlib.import_module(f"{runtime}.{file}")
        found |= {word: getattr(inside, word) for word in words}
    mix, intervals = (importlib.import_module(f"{runtime}.{file}") for file in ("mix", "intervals"))
    return found | {"Variant": mix.Variant, "HeadGroup": intervals.HeadGroup, "HeadGroups": intervals.HeadGroups}


def _signature(spec: Spec) -> tuple[object, ...]:
    """The code of the model but for the numbers of its launches: classes by their order, and the class of each layer."""
    found = passes.run(graph.build(spec))
    _, visible = eager.emit(found)
    classes = modules.Classes(spec, found, visible)
    rows = [classes.of_layer(layer).name for layer in spec.layers]
    order = {part.name: f"class {at}" for at, part in enumerate(classes.parts)}
    words = re.compile("|".join(rf"\b{name}\b" for name in order))
    texts = tuple(
        (len(part.mixes), *(CHUNK.sub("Rule(n", words.sub(lambda one: order[one.group()], line)) for line in _lines(part)))
        for part in classes.parts
    )
    return texts, tuple(order[name] for name in rows)


def _lines(part: Part) -> tuple[str, ...]:
    return *part.modules, *part.body


def _of_heads(variants: Sequence[Any]) -> list[Any]:
    """One group for each KV head, each from the variant that was drawn for it."""
    own = [next(g for g in variant.groups if g.first <= head <= g.last) for head, variant in enumerate(variants)]
    return [replace(group, first=head, last=head) for head, group in enumerate(own)]
