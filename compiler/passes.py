"""Graph to graph. Each pass is one function, `PASSES` is their order, and the graph is verified after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import networkx as nx

from attnc.compiler.graph import Combine, Graph, HeadGroup, Mix, Node, Variant, union
from attnc.compiler.mixers import MIXERS
from attnc.compiler.verify import verify

Pass = Callable[[Graph], Graph]


def drop_contained_keys(graph: Graph) -> Graph:
    """A key set that another of its union contains is dropped: `sink(4) | full` is `full`."""

    def smaller(node: Node) -> Node:
        if not isinstance(node, Mix):
            return node
        variants = tuple(v.model_copy(update={"groups": tuple(map(_without_contained, v.groups))}) for v in node.variants)
        return node.model_copy(update={"variants": variants})

    return _replace(graph, {name: smaller(node) for name, node in graph.nodes()})


def group_equal_heads(graph: Graph) -> Graph:
    """Neighbouring mixes of one layer with the same attributes and guards become one; equal head groups inside it too."""
    return _merge(graph, lambda mix: (mix.scope, mix.attributes, tuple(v.guards for v in mix.variants)), _side_by_side)


def variants_in_one_launch(graph: Graph) -> Graph:
    """Alternatives over the same KV groups with the same attributes differ only in numbers, so one launch serves them."""
    return _merge(graph, lambda mix: (mix.scope, mix.attributes, mix.first, mix.last), _on_top)


PASSES: tuple[Pass, ...] = (drop_contained_keys, group_equal_heads, variants_in_one_launch)


def run(graph: Graph) -> Graph:
    """All passes in order, verified after each."""
    verify(graph)
    for step in PASSES:
        graph = step(graph)
        verify(graph)
    return graph


def _without_contained(group: HeadGroup) -> HeadGroup:
    """A key set is contained if the union of the others already is the whole; learned keys are no positions, so never."""
    if group.intervals is None:
        return group
    keys = list(group.keys)
    for key in group.keys:
        others = tuple(other for other in keys if other is not key)
        placed = [other for other in others if not MIXERS[other.kind].own_keys(other)]
        if not MIXERS[key.kind].own_keys(key) and placed and union(others, group.intervals.causal) == group.intervals:
            keys = list(others)
    return group.model_copy(update={"keys": tuple(keys)})


def _merge(graph: Graph, key: Callable[[Mix], object], join: Callable[[list[Mix]], list[Mix]]) -> Graph:
    """Joins the mixes of each layer that have the same key; a `when` or `heads` above them reads the joined ones instead."""
    network: nx.DiGraph[str] = graph.network.copy()
    layers: dict[int, list[tuple[str, Mix]]] = {}
    for name, node in graph.nodes():
        if isinstance(node, Mix):
            layers.setdefault(node.layer, []).append((name, node))
    for mixes in layers.values():
        if len(mixes) == 1:
            continue
        classes: dict[object, list[tuple[str, Mix]]] = {}
        for name, mix in mixes:
            classes.setdefault(key(mix), []).append((name, mix))
        for members in classes.values():
            _rewire(network, members, join([mix for _, mix in members]))
    network.graph["order"] = [name for name in graph.network.graph["order"] if name in network]
    return Graph(_renamed(_without_single_whens(network)))


def _rewire(network: nx.DiGraph[str], members: list[tuple[str, Mix]], joined: list[Mix]) -> None:
    """The first member of each joined mix takes its place; the readers of the others read it."""
    for mix in joined:
        inside = [name for name, old in members if _covers(mix, old)]
        keep, *gone = inside
        network.nodes[keep]["node"] = mix
        for name in gone:
            for reader in list(network.successors(name)):
                if not network.has_edge(keep, reader):
                    network.add_edge(keep, reader, **network.edges[name, reader])
            network.remove_node(name)


def _covers(mix: Mix, old: Mix) -> bool:
    guards = {variant.guards for variant in mix.variants}
    return mix.first <= old.first and old.last <= mix.last and all(variant.guards in guards for variant in old.variants)


def _side_by_side(mixes: list[Mix]) -> list[Mix]:
    """Runs of neighbours become one mix each."""
    joined: list[Mix] = []
    for mix in sorted(mixes, key=lambda one: one.first):
        last = joined[-1] if joined else None
        if last is None or last.last + 1 != mix.first:
            joined.append(mix)
            continue
        pairs = zip(last.variants, mix.variants, strict=True)
        variants = tuple(Variant(guards=a.guards, groups=_equal_neighbours((*a.groups, *b.groups))) for a, b in pairs)
        joined[-1] = last.model_copy(update={"last": mix.last, "variants": variants})
    return joined


def _equal_neighbours(groups: Iterable[HeadGroup]) -> tuple[HeadGroup, ...]:
    kept: list[HeadGroup] = []
    for group in groups:
        if kept and kept[-1].keys == group.keys:
            kept[-1] = kept[-1].model_copy(update={"last": group.last})
        else:
            kept.append(group)
    return tuple(kept)


def _on_top(mixes: list[Mix]) -> list[Mix]:
    """Variants of the same heads in one mix, in the order in which their guards are tried."""
    first = mixes[0]
    return [first.model_copy(update={"variants": tuple(variant for mix in mixes for variant in mix.variants)})]


def _without_single_whens(network: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """A `when` over one mix is that mix."""
    for name in list(network.graph["order"]):
        node = network.nodes[name]["node"]
        if isinstance(node, Combine) and node.how == "when" and network.in_degree(name) == 1:
            (source,) = network.predecessors(name)
            for reader in list(network.successors(name)):
                if not network.has_edge(source, reader):
                    network.add_edge(source, reader, **network.edges[name, reader])
            network.remove_node(name)
    network.graph["order"] = [name for name in network.graph["order"] if name in network]
    return network


def _renamed(network: nx.DiGraph[str]) -> nx.DiGraph[str]:
    """Mixes are named after the heads that they have come to cover."""
    names: dict[str, str] = {}
    for name in network.graph["order"]:
        node = network.nodes[name]["node"]
        if isinstance(node, Mix):
            stem, _, label = name.rpartition("/")
            variant = label.split(".")[2:]
            new = f"{stem}/mix.{node.first}-{node.last}"
            if variant and any(f"{new}.{other}" in network for other in range(int(variant[0]))):
                new = f"{new}.{variant[0]}"
            names[name] = new
    changed = {old: new for old, new in names.items() if old != new}
    if not changed:
        return network
    renamed: nx.DiGraph[str] = nx.relabel_nodes(network, changed)
    renamed.graph["order"] = [changed.get(name, name) for name in network.graph["order"]]
    return renamed


def _replace(graph: Graph, nodes: dict[str, Node]) -> Graph:
    network: nx.DiGraph[str] = graph.network.copy()
    for name, node in nodes.items():
        network.nodes[name]["node"] = node
    return Graph(network)
