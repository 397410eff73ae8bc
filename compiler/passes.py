"""Graph to graph. Each pass is one function, `PASSES` is their order, and the graph is verified after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import networkx as nx

from attnc.compiler import intervals as arithmetic
from attnc.compiler.graph import Combine, Graph, HeadGroup, Mix, Node, Select, Variant, is_static, union
from attnc.compiler.kept import chunk_size
from attnc.compiler.verify import verify

Pass = Callable[[Graph], Graph]


def drop_contained_keys(graph: Graph) -> Graph:
    """A key set that another of its union contains is dropped: `sink(4) | full` is `full`."""
    variants: dict[int, tuple[Variant, ...]] = {}  # layers of one rule share their variants, and go on sharing them
    groups: dict[int, HeadGroup] = {}
    changed: dict[str, Node] = {}
    for name, node in graph.nodes():
        if not isinstance(node, Mix) or node.attributes.positions == "chunk":  # whose blocks number the chunks
            continue
        for group in (group for variant in node.variants for group in variant.groups if id(group) not in groups):
            groups[id(group)] = _without_contained(group)
        if id(node.variants) not in variants:
            variants[id(node.variants)] = tuple(_smaller(variant, groups) for variant in node.variants)
        if any(one is not other for one, other in zip(variants[id(node.variants)], node.variants, strict=True)):
            changed[name] = replace(node, variants=variants[id(node.variants)])
    return _replace(graph, changed) if changed else graph


def group_equal_heads(graph: Graph) -> Graph:
    """Neighbouring mixes of one layer with the same attributes and guards become one; equal head groups inside it too."""
    return _merge(graph, lambda mix: (mix.scope, *_turned(mix), tuple(v.guards for v in mix.variants)), _side_by_side)


def variants_in_one_launch(graph: Graph) -> Graph:
    """Alternatives over the same KV groups with the same attributes differ only in numbers, so one launch serves them."""
    return _merge(graph, lambda mix: (mix.scope, *_turned(mix), mix.first, mix.last), _on_top)


def _turned(mix: Mix) -> tuple[object, ...]:
    """What must be equal before q and k can be turned once for several mixes."""
    return (mix.attributes, chunk_size(mix) if mix.attributes.positions == "chunk" else None)


def choices_before_launches(graph: Graph) -> Graph:
    """A launch in some variants of which content chooses keys reads them from a node of their own."""
    found = {name: node for name, node in graph.nodes() if isinstance(node, Mix) and any(map(_chooses, node.variants))}
    if not found:
        return graph
    network: nx.DiGraph[str] = graph.network.copy()
    order = []
    for name in graph.network.graph["order"]:
        if name in found:
            mix = found[name]
            where, _, what = name.rpartition("/")
            select = f"{where}/{what.replace('mix', 'select', 1)}"
            variants = tuple(variant for variant in mix.variants if _chooses(variant))
            shape = {key: getattr(mix, key) for key in ("layer", "scope", "first", "last", "attributes")}
            network.add_node(select, node=Select(**shape, variants=variants))
            for source in graph.inputs(name):
                network.add_edge(source, select, place=0, carries="tensor")
            network.add_edge(select, name, place=1, carries="lists")
            order.append(select)
        order.append(name)
    network.graph["order"] = order
    return Graph(network)


def _chooses(variant: Variant) -> bool:
    return any(group.choices for group in variant.groups)


PASSES: tuple[Pass, ...] = (drop_contained_keys, variants_in_one_launch, group_equal_heads, choices_before_launches)
"""Variants come first: neighbours of which some variants alone are equal must not be joined in those alone."""


def run(graph: Graph) -> Graph:
    """All passes in order, verified after each."""
    verify(graph)
    for step in PASSES:
        before, graph = graph, step(graph)
        if graph is not before:
            verify(graph)
    return graph


def _smaller(variant: Variant, smaller: dict[int, HeadGroup]) -> Variant:
    """The variant with its groups as found in `smaller`; itself where none has changed."""
    groups = tuple(smaller[id(group)] for group in variant.groups)
    same = all(one is other for one, other in zip(groups, variant.groups, strict=True))
    return variant if same else replace(variant, groups=groups)


def _without_contained(group: HeadGroup) -> HeadGroup:
    """A key set is contained if the union of the others already is the whole; learned keys are no positions, so never.

    What content chooses is contained in all keys, and in nothing less.
    """
    if group.intervals is None:
        return group
    keys = list(group.keys)
    for key in group.keys:
        others = tuple(other for other in keys if other is not key)
        if key in group.choices:
            contained = arithmetic.is_full(group.intervals)
        else:
            contained = (
                is_static(key) and any(map(is_static, others)) and union(others, group.intervals.causal) == group.intervals
            )
        if contained:
            keys = list(others)
    return group if len(keys) == len(group.keys) else replace(group, keys=tuple(keys))


Joined = list[tuple[Mix, list[int]]]
"""Mixes, each with the places of those that it was joined from."""


def _merge(graph: Graph, key: Callable[[Mix], object], join: Callable[[list[Mix]], Joined]) -> Graph:
    """Joins the mixes of each layer that have the same key; a `when` or `heads` above them reads the joined ones instead."""
    layers: dict[int, list[tuple[str, Mix]]] = {}
    for name, node in graph.nodes():
        if isinstance(node, Mix):
            layers.setdefault(node.layer, []).append((name, node))
    known: dict[tuple[tuple[str, int], ...], Joined] = {}
    mixes_now: dict[str, Node] = {}
    becomes: dict[str, str] = {}
    for layer, mixes in layers.items():
        signature = tuple((mix.scope, id(mix.variants)) for _, mix in mixes)
        if signature not in known:
            known[signature] = _classes([mix for _, mix in mixes], key, join)
        for mix, places in known[signature]:
            keep, *gone = (mixes[place][0] for place in places)
            mixes_now[keep] = replace(mix, layer=layer)
            becomes |= dict.fromkeys(gone, keep)
    return _joined(graph, mixes_now, becomes) if becomes else graph


def _classes(mixes: list[Mix], key: Callable[[Mix], object], join: Callable[[list[Mix]], Joined]) -> Joined:
    """The mixes of one layer that have the same key, joined; one that stays alone is not there."""
    classes: dict[object, list[int]] = {}
    for place, mix in enumerate(mixes):
        classes.setdefault(key(mix), []).append(place)
    found: Joined = []
    for members in classes.values():
        if len(members) > 1:
            joined = join([mixes[member] for member in members])
            found += [(mix, [members[at] for at in places]) for mix, places in joined]
    return found


def _joined(graph: Graph, changed: dict[str, Node], becomes: dict[str, str]) -> Graph:
    """The graph with `changed` nodes; readers of a key of `becomes` read its value. A `when` over one mix is that mix."""
    for name, node in graph.nodes():
        if isinstance(node, Combine) and node.how == "when":
            sources = {becomes.get(source, source) for source in graph.network.predecessors(name)}
            if len(sources) == 1:
                becomes[name] = sources.pop()
    nodes = {name: changed.get(name, node) for name, node in graph.nodes() if name not in becomes}
    renamed = _names(nodes)
    network: nx.DiGraph[str] = nx.DiGraph(model=graph.model, order=[renamed.get(name, name) for name in nodes])
    network.add_nodes_from((renamed.get(name, name), {"node": node}) for name, node in nodes.items())
    own: list[tuple[str, str, dict[str, object]]] = []  # edges that stay go before those that are taken over
    moved: list[tuple[str, str, dict[str, object]]] = []
    for source, reader, edge in graph.network.edges(data=True):
        one, other = becomes.get(source, source), becomes.get(reader, reader)
        if one != other:
            edges = own if (one, other) == (source, reader) else moved
            edges.append((renamed.get(one, one), renamed.get(other, other), edge))
    for one, other, edge in (*own, *moved):
        if not network.has_edge(one, other):
            network.add_edge(one, other, **edge)
    return Graph(network)


def _side_by_side(mixes: list[Mix]) -> Joined:
    """Runs of neighbours become one mix each."""
    runs: list[list[int]] = []
    for place in sorted(range(len(mixes)), key=lambda place: mixes[place].first):
        if runs and mixes[runs[-1][-1]].last + 1 == mixes[place].first:
            runs[-1].append(place)
        else:
            runs.append([place])
    return [(_run([mixes[place] for place in run]), run) for run in runs if len(run) > 1]


def _run(mixes: list[Mix]) -> Mix:
    """Neighbours as one mix, variant by variant."""
    columns = zip(*(mix.variants for mix in mixes), strict=True)
    variants = tuple(
        Variant(guards=column[0].guards, groups=_equal_neighbours(group for variant in column for group in variant.groups))
        for column in columns
    )
    return replace(mixes[0], last=mixes[-1].last, variants=variants)


def _equal_neighbours(groups: Iterable[HeadGroup]) -> tuple[HeadGroup, ...]:
    kept: list[HeadGroup] = []
    for group in groups:
        if kept and set(kept[-1].keys) == set(group.keys):
            kept[-1] = replace(kept[-1], last=group.last)
        else:
            kept.append(group)
    return tuple(kept)


def _on_top(mixes: list[Mix]) -> Joined:
    """Variants of the same heads in one mix, in the order in which their guards are tried."""
    variants = tuple(variant for mix in mixes for variant in mix.variants)
    return [(replace(mixes[0], variants=variants), list(range(len(mixes))))]


def _names(nodes: dict[str, Node]) -> dict[str, str]:
    """New names of mixes: after the heads that they have come to cover, and numbered where several cover the same."""
    same: dict[str, list[str]] = {}
    for name, node in nodes.items():
        if isinstance(node, Mix):
            same.setdefault(f"{name.rpartition('/')[0]}/mix.{node.first}-{node.last}", []).append(name)
    return {old: new if len(olds) == 1 else f"{new}.{place}" for new, olds in same.items() for place, old in enumerate(olds)}


def _replace(graph: Graph, nodes: dict[str, Node]) -> Graph:
    network: nx.DiGraph[str] = graph.network.copy()
    for name, node in nodes.items():
        network.nodes[name]["node"] = node
    return Graph(network)
