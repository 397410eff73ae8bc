"""The layer graph and the plan as text: equal layers in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnc.compiler.graph import Apply, Combine, Graph, Guard, Mix, Node, Project, RouteTokens
from attnc.compiler.plan import Choice, Plan
from attnc.compiler.print_value import print_keys, print_value
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import PHASES

LAYERS_SHOWN = 28
"""Characters of a list of layers; longer ones are cropped."""


def graph_text(graph: Graph) -> str:
    """Every node of the graph with what it reads; layers that are equal but for their number share their lines."""
    layers: dict[int, list[str]] = {}
    for name, node in graph.nodes():
        inside = [source.partition("/")[2] for source in graph.inputs(name) if source.startswith(f"{node.layer}/")]
        line = f"  {name.partition('/')[2]:<16} {described(node)}{' <- ' + ', '.join(inside) if inside else ''}"
        layers.setdefault(node.layer, []).append(line)
    lines = []
    for same, text in _equal((tuple(text), layer) for layer, text in layers.items()):
        lines += [f"layers {ranges(same)}", *text]
    return "\n".join(lines) + "\n"


def described(node: Node) -> str:
    """What a node does, in the language's own words."""
    match node:
        case Project(attributes=a, qk_layer=layer):
            source = "" if layer is None else f", q and k of layer {layer}"
            return f"{a.heads} heads on {a.kv_heads} of {a.head_dim}{source}"
        case Mix(variants=variants):
            return "; ".join(
                " and ".join(map(_guard, variant.guards))
                + ": " * bool(variant.guards)
                + ", ".join(f"{_heads(group.first, group.last)} {print_keys(group.keys)}" for group in variant.groups)
                for variant in variants
            )
        case RouteTokens(names=names, alternatives=alternatives):
            return ", ".join(f"{name}: {print_keys(keys)}" for name, keys in zip(names, alternatives, strict=True))
        case Apply(kind=kind):
            return print_value(kind)
        case Combine(how=how, names=names):
            return how + (f" of {', '.join(names)}" if names else "")


def plan_text(plan: Plan, graph: Graph) -> str:
    """The kernel and price of every part in every phase, then the runners-up and refusals."""
    nodes = dict(graph.nodes())
    parts = _parts(plan)
    rows = [("layers", "part", *PHASES)]
    for layers, choices in parts:
        cells = [f"{choice.provider} {time_text(choice.seconds)}" for choice in choices]
        rows.append((_cropped(layers), described(nodes[choices[0].node]), *cells))
    totals = [sum(choice.seconds for choice in plan.choices if choice.phase == phase) for phase in PHASES]
    rows.append(("", "all of them", *map(time_text, totals)))
    lines = [
        f"{plan.device}, {plan.length} tokens, batch {plan.batch}; times are computed, not measured",
        *aligned(rows),
        "",
        "why",
    ]
    for layers, choices in parts:
        lines.append(f"  {described(nodes[choices[0].node])} in layers {_cropped(layers)}")
        lines += [f"    {choice.phase}: {_reasons(choice)}" for choice in choices]
    return "\n".join(lines) + "\n"


def time_text(seconds: float) -> str:
    """`362 us`: three significant digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns side by side, two spaces between them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _parts(plan: Plan) -> list[tuple[list[int], list[Choice]]]:
    """Layers whose part has the same choices in all phases, with those of the first."""
    nodes: dict[str, list[Choice]] = {}
    for choice in plan.choices:
        nodes.setdefault(choice.node, []).append(choice)
    keys = {
        node: tuple(choice.model_copy(update={"node": node.partition("/")[2], "layer": 0}) for choice in choices)
        for node, choices in nodes.items()
    }
    same: dict[tuple[Choice, ...], list[str]] = {}
    for node, key in keys.items():
        same.setdefault(key, []).append(node)
    return [([nodes[node][0].layer for node in members], nodes[members[0]]) for members in same.values()]


def _equal(pairs: Iterable[tuple[tuple[str, ...], int]]) -> list[tuple[list[int], tuple[str, ...]]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for text, layer in pairs:
        found.setdefault(text, []).append(layer)
    return [(layers, text) for text, layers in found.items()]


def _reasons(choice: Choice) -> str:
    taken = f"{choice.provider} {time_text(choice.seconds)}"
    others = [f"{other.provider} {time_text(other.seconds)}" for other in choice.others]
    refused = [f"{refusal.provider} refused: {refusal.reason}" for refusal in choice.refused]
    return "; ".join([taken, *others, *refused])


def _guard(guard: Guard) -> str:
    condition = guard.condition
    return f"{'' if guard.holds else 'not '}{condition.left} {condition.operator} {condition.right}"


def _heads(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"


def _cropped(layers: list[int]) -> str:
    text = ranges(layers)
    return text if len(text) <= LAYERS_SHOWN else f"{text[: LAYERS_SHOWN - 5].rpartition(',')[0]}, ..."
