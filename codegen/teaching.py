"""The class of a kind that lowers to fast weights: x -> q, k, v and rates -> one launch of nets that learn -> o."""

from __future__ import annotations

from attnc.codegen import projecting
from attnc.codegen.launching import rope_text
from attnc.codegen.parts import Names, Part, merged
from attnc.codegen.scanning import AXES, LONGEST, plan_of_states
from attnc.compiler.graph import Apply, Graph
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Model
from attnc.compiler.taught import Taught

RATES = ("lr", "momentum", "decay")


def taught(graph: Graph, layer: int, scope: str, names: Names, model: Model, *, asked: bool = False) -> Part:
    """The class of an Apply node whose kind says what it teaches. `asked`: a context asks it before it learns."""
    found = ((name, node) for name, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope)
    name, node = next(found)
    declared = MIXERS[node.kind.kind]
    assert declared.taught is not None, "asked only of kinds that lower to fast weights"
    one = declared.taught(node.kind, node.attributes, model)
    class_name = names.new([node.kind.kind], "Mixer")
    turns = rope_text(node.attributes)
    modules = (
        *projecting.projections(one.streams, node.attributes, model),
        *_modules(one, model),
        *projecting.after(node.attributes, model),
        *projecting.out_scale(node.attributes, model),
        *([f"self.rope = {turns}"] if turns is not None else []),
        _launch(one, class_name),
    )
    body = (*_body(node, one), *projecting.output(node.attributes, node.chained))
    return Part(
        name=class_name,
        place="mixer",
        template="attention.py.j2",
        summary=_summary(node, one),
        origins=(str(node.origin),),
        modules=modules,
        body=body,
        plans=(plan_of_states(node, declared, model),),
        slots=1,
        chained=node.chained and node.attributes.output_gate is not None,
        launches={class_name: name},
        needs=merged([_needs(node, one, "\n".join((*modules, *body))), *([{"context": {"retrieve"}}] if asked else [])]),
        more=tuple(_asking(node, one)) if asked else (),
    )


ASKED = "asked_q_conv"
"""The state of the convolution of what a memory is asked, apart from that of what it learns from."""


def _asking(node: Apply, one: Taught) -> list[str]:
    """A method that reads the net without teaching it."""
    lines = [*projecting.begin(node.attributes, chained=False)]
    lines += projecting.project({"q": one.streams["q"]}, node.attributes, AXES)
    lines = [line.replace('"q_conv")', f'"{ASKED}")') for line in lines]
    if rope_text(node.attributes) is not None:
        lines.append("q = rotate_by(q, *call.angles(self.rope))")
    norm = f", self.{one.norm}()" if one.family.norm else ""
    lines.append(f"o = retrieve(self.scan, q, call, self.slot{norm})  # [T, H, E]")
    head = "def retrieve(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]"
    doc = '    """What it returns at the weights that the segment began with; nothing is learned."""'
    return [head, doc, *(f"    {line}" for line in (*lines, *projecting.output(node.attributes)))]


def _summary(node: Apply, one: Taught) -> str:
    """`16 nets of 64 x 256 x 64, which learn in chunks of 64 tokens.`"""
    family = one.family
    inside = [family.hidden] * (1 if family.gated else family.depth - 1)
    widths = " x ".join(map(str, (family.key_width, *inside, family.value_width)))
    nets = f"{one.heads} {'gated ' if family.gated else ''}net{'s' * (one.heads > 1)} of {widths}"
    return f"{node.kind.kind}: {nets}, {'each of which learns' if one.heads > 1 else 'which learns'} in chunks of {one.chunk}."


def _modules(one: Taught, model: Model) -> list[str]:
    """The net as texts begin with it, what rates are learned from, and the norm."""
    shapes = ", ".join(f'"{name}": {shape!r}' for name, shape in one.shapes.items())
    lines = [f"self.net = Net({{{shapes}}})"]
    if len(lines[0]) > LONGEST:
        rows = "".join(f'\n                "{name}": {shape!r},' for name, shape in one.shapes.items())
        lines = [f"self.net = Net(\n            {{{rows}\n            }}\n        )"]
    for name in RATES:
        match getattr(one.family, name):
            case "token":
                lines.append(f"self.{name}_proj = nn.Linear({model.dim}, {one.heads})")
            case "head":
                lines.append(f"self.{name} = nn.Parameter(torch.zeros({one.heads}))")
    if one.family.norm:
        lines.append(f"self.{one.norm} = HeadNorm({one.heads}, {one.family.value_width})")
    return lines


def _launch(one: Taught, name: str) -> str:
    family = one.family
    flags = {
        "gated": family.gated,
        "momentum": family.momentum != "none",
        "after_write": family.after_write,
        "after_decay": family.after_decay,
        "weight_norm": family.weight_norm,
        "residual": family.residual,
    }
    rule = ", ".join([str(one.chunk), *(f"{word}=True" for word, given in flags.items() if given)])
    return f'self.scan = FastWeights("{name}", Rule({rule}), formula=reference.{one.formulas[-1].__name__})'


def _body(node: Apply, one: Taught) -> list[str]:
    """From x to o [T, H, E]."""
    lines = projecting.begin(node.attributes, node.chained)
    lines += projecting.project(one.streams, node.attributes, AXES)
    if rope_text(node.attributes) is not None:
        lines.append("turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]")
        lines.append("q, k = rotate_by(q, *turn), rotate_by(k, *turn)")
    given = []
    for name in RATES:
        match getattr(one.family, name):
            case "token":
                lines.append(f"{name} = strength(self.{name}_proj(x))  # [T, H]")
                given.append(f"{name}={name}")
            case "head":
                lines.append(f"{name} = strength(self.{name})  # [H]")
                given.append(f"{name}={name}")
            case "number":
                given.append(f"{name}={one.numbers[name]!r}")
    norm = [f"norm=self.{one.norm}()"] if one.family.norm else []
    arguments = ", ".join(["q", "k", "v", "self.net()", "call", "self.slot", *norm, *given])
    text = f"o = self.scan({arguments})  # [T, H, E]"
    if len(text) > LONGEST:
        text = f"o = self.scan(  # [T, H, E]\n            {arguments}\n        )"
    return [*lines, text]


def _needs(node: Apply, one: Taught, text: str) -> dict[str, set[str]]:
    needs: dict[str, set[str]] = {"cache": {"LayerPlan", "State"}, "fast": {"Rule"}, "learning": {"FastWeights", "Net"}}
    if one.family.norm:
        needs["learning"].add("HeadNorm")
    if "strength(" in text:
        needs["gates"] = {"strength"}
    if rope_text(node.attributes) is not None:
        needs["rotary"] = {"rotate_by", *(word for word in ("Rope", "LinearScale", "Yarn", "Llama3") if f"{word}(" in text)}
    return merged([needs, projecting.needs(one.streams, node.attributes)])
