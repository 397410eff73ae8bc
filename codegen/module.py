"""Spec, graph and plan to the text of model.py, which reads from top to bottom like a model written by hand."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import jinja2

from attnc.codegen import attending, composing, condensing, plain, routing, scanning, segmenting, spacing, teaching
from attnc.codegen.eager.emit import Masks
from attnc.codegen.parts import Names, Part
from attnc.compiler import parameters
from attnc.compiler.causality import Refusal, refusals
from attnc.compiler.graph import Graph
from attnc.compiler.mixers import MIXERS, stands
from attnc.compiler.planned import Choice, Plan
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import Attention, Chain, Choose, Context, Gate, Layer, Mixer, Mixing, Model, Route, Spec, Sum
from attnc.compiler.walk import default, is_softmax

Entry = tuple[int, Part, int, str]
"""A layer, its class, its first slot, and what else its class is given, as source."""


@dataclass(frozen=True)
class Row:
    """A run of layers `first..last` that are built alike; launch slots go up by `step`."""

    block: str
    mixer: str
    first: int
    last: int
    slot: int
    step: int
    more: str

    @property
    def end(self) -> int:
        """One past the run's last slot."""
        return self.slot + (self.last - self.first + 1) * self.step


@dataclass
class Classes:
    """The classes of one module, each written once: layers that are equal but for their number share one."""

    spec: Spec
    graph: Graph
    visible: Masks
    names: Names = field(default_factory=Names)
    parts: list[Part] = field(default_factory=list)
    known: dict[tuple[int, tuple[bool, bool]], Part] = field(default_factory=dict)

    def of_layer(self, layer: Layer) -> Part:
        """The class of a layer's mixer."""
        handed = attending.hands_on(self.graph, layer.index), attending.lends(self.graph, layer.index)
        key = (id(layer.mixer), handed)  # layers of one rule hold the same mixer
        if key not in self.known:
            self.known[key] = self.write(layer.mixer, layer.index, "")
        return self.known[key]

    def write(self, mixer: Mixer, layer: int, scope: str) -> Part:
        """The class of one expression, after the classes of its parts."""
        match mixer:
            case Sum(names=names, parts=parts) | Chain(names=names, parts=parts) | Gate(names=names, parts=parts):
                inner = [self.write(p, layer, f"{scope}.{n}" if scope else n) for n, p in zip(names, parts, strict=True)]
                part = composing.combine(mixer, inner, self.names, self.spec.model)
            case Mixing():
                part = self.mixing(mixer, layer, scope)
            case Choose(alternatives=(first, *_)) if isinstance(default(mixer), Route):
                part = self.write(first.mixer, layer, scope)
            case Choose(alternatives=(first, *_)) if not is_softmax(default(mixer)):
                part = self.write(first.mixer, layer, f"{scope}.{first.name}" if scope else first.name)
                part = self.alone(first.name, first.mixer, part)
            case Attention(keys=keys) if any(stands(key) for key in keys):
                part = condensing.condensed(self.graph, layer, scope, self.names, self.spec.model, self.visible)
            case Context():
                part = self.context(mixer, layer, scope)
            case Route():
                part = routing.routed(self.graph, layer, scope, self.names, self.spec.model, self.visible)
            case _:
                beside = scanning.of_heads(self.graph, layer, scope, self.names, self.spec.model)
                self.parts += beside.values()
                part = attending.attention(self.graph, layer, scope, self.names, self.spec.model, self.visible, beside)
        if not self.parts or self.parts[-1] is not part:
            self.parts.append(part)
        return part

    def mixing(self, mixer: Mixing, layer: int, scope: str) -> Part:
        """A kind that is a mixer by itself; alone in a layer its weights lie below its own name, as they do beside others."""
        declared, write = MIXERS[mixer.kind.kind], plain.plain
        if declared.scanned is not None:
            write = scanning.scanned
        elif declared.spaced is not None:
            write = spacing.spaced
        elif declared.taught is not None:
            write = teaching.taught
        part = write(self.graph, layer, scope, self.names, self.spec.model)
        return part if scope else self.alone(mixer.kind.kind, mixer, part)

    def context(self, mixer: Context, layer: int, scope: str) -> Part:
        """A context, after the class of its memory; alone in a layer its weights lie below its own name."""
        own = scope or mixer.node
        memory = teaching.taught(self.graph, layer, f"{own}.{mixer.name}", self.names, self.spec.model, asked=True)
        self.parts.append(memory)
        part = segmenting.context(self.graph, layer, own, mixer, memory, self.names, self.spec.model, self.visible)
        return part if scope else self.alone(own, mixer, part)

    def alone(self, name: str, mixer: Mixer, part: Part) -> Part:
        """The class that holds one part under its name."""
        if not self.parts or self.parts[-1] is not part:
            self.parts.append(part)
        return composing.combine(Sum(names=(name,), parts=(mixer,)), [part], self.names, self.spec.model)


def emit(spec: Spec, graph: Graph, plans: Mapping[str, Plan], visible: Masks, version: str) -> tuple[str, dict[str, str]]:
    """The text of model.py, and for every launch of it the graph node that it runs.

    `plans`: for each kind of device (`cuda`, `cpu`) the plan that holds there. `visible`: the mask functions of reference.py.
    """
    classes = Classes(spec, graph, visible)
    table: list[Entry] = []
    slots: list[int] = []
    slot = 0
    for layer in spec.layers:
        part = classes.of_layer(layer)
        source = attending.source_layer(graph, layer.index)
        table.append((layer.index, part, slot, "" if source is None else f", {slots[source]}"))
        slots.append(slot)
        slot += part.slots
    launches = {name: node for part in classes.parts for name, node in part.launches.items()}
    model = spec.model
    weights = parameters.parameters(spec, graph)
    lines = "\n".join(line for part in classes.parts for line in (*part.modules, *part.body, *part.plans))
    context = {
        "uses_partial": any("partial(" in mix.reference for part in classes.parts for mix in part.mixes),
        "uses_torch": "torch." in lines + head(model),
        "uses_functional": "F." in lines,
        "title": model.name,
        "version": version,
        "file": spec.file,
        "digest": hashlib.sha256(spec.text.encode()).hexdigest()[:12],
        "imports": _imports(classes.parts, model, bool(_refused(spec))),
        "providers": {device: _providers(plan, launches) for device, plan in plans.items()},
        "split": any(choice.parts for plan in plans.values() for choice in plan.choices),
        "classes": classes.parts,
        "blocks": _blocks(table),
        "table": _runs(table),
        "layers": model.layers,
        "model": model,
        "norm": norm(model),
        "sandwich": model.norm_place == "sandwich",
        "feed_forward": feed_forward(model),
        "residual": "" if model.residual_scale == 1 else f"{model.residual_scale!r} * ",
        "embedding": "" if model.embedding_scale == 1 else f" * {model.embedding_scale!r}",
        "head": head(model),
        "rises": any("LowerBound(" in line for part in classes.parts for line in part.modules),
        "parameters": f"{parameters.total(weights):,}",
        "refused": _refused(spec),
    }
    return render("model.py.j2", **context), launches


def _refused(spec: Spec) -> dict[str, str]:
    """use -> why the choices of the spec forbid it, as source."""
    found: dict[str, list[Refusal]] = {}
    for one in refusals(spec):
        found.setdefault(one.use, []).append(one)
    texts = {}
    for use, reasons in found.items():
        said = "; ".join(f"layers {ranges(list(one.layers))}: {one.message}" for one in reasons)
        multiples = [one.multiple for one in reasons if one.multiple is not None]
        whole = f", multiple={math.lcm(*multiples)}" if len(multiples) == len(reasons) else ""
        texts[use] = f'Refused("{reasons[0].code}", {json.dumps(said)}{whole})'
    return texts


def render(template: str, **context: object) -> str:
    """A template of codegen/templates; a name that is missing is our mistake."""
    loader = jinja2.PackageLoader("attnc.codegen", "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    return environment.get_template(template).render(context)


def norm(model: Model) -> str:
    """The expression that makes a norm."""
    if model.norm.kind == "layer":
        return f"nn.LayerNorm({model.dim}, eps={model.norm.epsilon!r})"
    centre = ", centre=1" if model.norm.centre else ""
    return f"RMSNorm({model.dim}, {model.norm.epsilon!r}{centre})"


def feed_forward(model: Model) -> str:
    """The expression that makes a feed-forward part; empty where there is none."""
    if model.feed_forward is None:
        return ""
    bias = ", bias=True" if model.bias == "all" else ""
    return f'FeedForward("{model.feed_forward.kind}", {model.dim}, {model.feed_forward.width}{bias})'


def head(model: Model) -> str:
    """The expression of the logits of x."""
    text = "self.lm_head(x)"
    if model.logit_scale != 1:
        text = f"{model.logit_scale!r} * {text}"
    if model.logit_cap is not None:
        text = f"{model.logit_cap!r} * torch.tanh(({text}) / {model.logit_cap!r})"
    return text


def _imports(parts: list[Part], model: Model, refused: bool) -> list[str]:
    """The import lines that the classes need, beside the template's own."""
    wanted: dict[str, set[str]] = {"model": {"BuiltModel"}, "cache": {"LayerPlan"}, "call": {"Call"}}
    if refused:
        wanted["leaks"] = {"Refused"}
    if model.norm.kind == "rms":
        wanted.setdefault("layers", set()).add("RMSNorm")
    if model.feed_forward is not None:
        wanted.setdefault("layers", set()).add("FeedForward")
    for part in parts:
        for file, names in part.needs.items():
            wanted.setdefault(file, set()).update(names)
    if "LowerBound" in wanted.get("gates", ()):
        wanted["gates"].add("rise")
    return [f"from .runtime{_dotted(file)} import {', '.join(sorted(names))}" for file, names in sorted(wanted.items())]


def _dotted(file: str) -> str:
    """The file in the package `runtime`; `.` is the package itself."""
    return "" if file == "." else f".{file}"


def _providers(plan: Plan, launches: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """launch -> phase -> who runs it, as source."""
    rows: dict[str, dict[str, str]] = {node: {} for node in launches.values()}
    for choice in plan.choices:
        if choice.node in rows:
            rows[choice.node][choice.phase] = _way(choice)
    return {launch: rows[node] for launch, node in launches.items()}


def _way(choice: Choice) -> str:
    parts = ", ".join(f'("{part.provider}", {part.first}, {part.last})' for part in choice.parts)
    return f"({parts})" if parts else f'"{choice.provider}"'


def _blocks(table: list[Entry]) -> list[dict[str, str]]:
    places = list(dict.fromkeys(part.place for _, part, _, _ in table))
    return [{"name": block_name(place, places), "place": place} for place in places]


def block_name(place: str, places: list[str]) -> str:
    """`Layer` where all layers keep their mixer in one place, else one name for each place."""
    return "Layer" if len(places) == 1 else {"self_attn": "AttentionLayer", "mixer": "MixerLayer"}[place]


def _runs(table: list[Entry]) -> list[Row]:
    places = list(dict.fromkeys(part.place for _, part, _, _ in table))
    runs: list[Row] = []
    for index, part, slot, more in table:
        last = runs[-1] if runs else None
        if last is not None and (last.mixer, last.more, last.last) == (part.name, more, index - 1):
            runs[-1] = replace(last, last=index)
        else:
            runs.append(Row(block_name(part.place, places), part.name, index, index, slot, part.slots, more))
    return runs
