"""Graphs and plans as text, for people and for goldens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from attnc.compiler.graph import (
    Apply,
    Combine,
    Condense,
    Graph,
    Guard,
    HeadGroup,
    Mix,
    Node,
    Project,
    RouteTokens,
    Select,
    Smooth,
    Variant,
)
from attnc.compiler.mixer import Kind
from attnc.compiler.planned import Choice, Plan, Price
from attnc.compiler.print_value import print_value
from attnc.compiler.spec import PHASES


def graph_text(graph: Graph) -> str:
    """A line for each node with what it reads; layers that are alike but for their number are printed once."""
    layers = dict.fromkeys(node.layer for _, node in graph.nodes())
    return "".join(_alike({layer: "\n".join(_node_lines(graph, layer)) for layer in layers}))


def plan_text(plan: Plan) -> str:
    """The choice of every node and phase with its price, runners-up and refusals; equal layers once."""
    by_layer = groupby(plan.choices, key=lambda choice: choice.layer)
    blocks = _alike({layer: "\n".join(_choice_lines(tuple(choices))) for layer, choices in by_layer})
    left_out = "".join(f"; {refusal.provider} no: {refusal.reason}" for refusal in plan.absent)
    return f"plan for {plan.device}, {plan.batch} x {plan.length} tokens{left_out}\n" + "".join(blocks)


def seconds_text(seconds: float | None) -> str:
    """`12.3 us`, `4.56 ms`, `1.2 s`."""
    if seconds is None:
        return "no price"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError("the last unit takes every number")


def _alike(texts: dict[int, str]) -> Iterator[str]:
    """Each distinct text once, under the numbers of the layers that have it."""
    layers: dict[str, list[int]] = {}
    for layer, text in texts.items():
        layers.setdefault(text, []).append(layer)
    for text, numbers in layers.items():
        yield f"{numbers_text(numbers)}\n{text}\n"


def numbers_text(layers: list[int]) -> str:
    """`layer 3`, `layers 0..4, 6..10, 12`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    shown = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {shown}"


def _node_lines(graph: Graph, layer: int) -> Iterator[str]:
    rows = []
    for name, node in graph.nodes(layer):
        own = [source.partition("/")[2] for source in graph.inputs(name) if graph.network.nodes[source]["node"].layer == layer]
        rows.append((name.partition("/")[2], ", ".join(own) or "x", _node_text(node)))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return (f"  {name:<{first}} <- {reads:<{second}}  {text}".rstrip() for name, reads, text in rows)


def _node_text(node: Node) -> str:
    match node:
        case Project(attributes=a, qk_layer=source):
            shared = "" if source is None else f", q and k of layer {source}"
            return f"{a.heads} q heads, {a.kv_heads} kv heads, width {a.head_dim}{shared}"
        case Mix(variants=variants):
            return "; ".join(map(_variant_text, variants))
        case Select(variants=variants):
            kinds = (kind for variant in variants for group in variant.groups for kind in group.choices)
            return f"lists of {', '.join(dict.fromkeys(map(kind_text, kinds)))}"
        case Condense(group=group, kind=kind):
            return _keys_text((*group.keys, kind))
        case Smooth(attributes=a):
            return f"a moving average with {a.input_ema} states a channel"
        case RouteTokens(names=names, alternatives=alternatives):
            return ", ".join(f"{name}: {_keys_text(keys)}" for name, keys in zip(names, alternatives, strict=True))
        case Apply(kind=kind, runs=runs):
            heads = ", ".join(f"{first}" if first == last else f"{first}..{last}" for first, last in runs)
            return f"{heads}: {kind_text(kind)}" if runs else kind_text(kind)
        case Combine(how=how):
            return {"when": "the variant that holds", "heads": "side by side, then o", "sum": "added", "gate": "gated"}[how]


def _variant_text(variant: Variant) -> str:
    guards = " and ".join(map(_guard_text, variant.guards))
    groups = ", ".join(map(_group_text, variant.groups))
    return f"[{guards}] {groups}" if guards else groups


def _guard_text(guard: Guard) -> str:
    condition = guard.condition
    text = f"{condition.left} {condition.operator} {condition.right}"
    return text if guard.holds else f"not {text}"


def _group_text(group: HeadGroup) -> str:
    heads = f"{group.first}" if group.first == group.last else f"{group.first}..{group.last}"
    return f"{heads}: {_keys_text(group.keys)}"


def _keys_text(keys: tuple[Kind, ...]) -> str:
    return " | ".join(kind_text(key) for key in keys)


def kind_text(kind: Kind) -> str:
    """A kind as it is written."""
    return print_value(kind)


def _choice_lines(choices: tuple[Choice, ...]) -> Iterator[str]:
    width = max(len(choice.node.partition("/")[2]) for choice in choices)
    for choice in sorted(choices, key=lambda one: (one.node, PHASES.index(one.phase))):
        node = choice.node.partition("/")[2]
        best = f"{choice.provider:<9} {seconds_text(choice.seconds):>8}{_way_text(choice)}"
        others = "".join(f", {price.provider} {seconds_text(price.seconds)}{_way_text(price)}" for price in choice.others)
        refused = "".join(f"; {refusal.provider} no: {refusal.reason}" for refusal in choice.refused)
        yield f"  {node:<{width}}  {choice.phase:<8} {best}{others}{refused}"


def _way_text(price: Choice | Price) -> str:
    """` (cuDNN)`, ` (kv heads 0..1 torch by cuDNN, 2..7 triton)`, or nothing."""
    parts = ", ".join(
        f"{_run_text(part.first, part.last)} {part.provider}{f' by {part.how}' if part.how else ''}" for part in price.parts
    )
    text = f"kv heads {parts}" if parts else price.how
    return f" ({text})" if text else ""


def _run_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"
