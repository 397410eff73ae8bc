"""What is true of every graph, whatever pass made it. A failure here is our mistake, never the user's."""

from __future__ import annotations

from attnc.compiler.graph import Apply, Combine, Graph, Mix


def verify(graph: Graph) -> None:
    """Raises AssertionError with the node that breaks the rule."""
    network = graph.network
    order = network.graph["order"]
    assert len(order) == len(set(order)) == network.number_of_nodes(), "the order names every node once"
    place = {name: index for index, name in enumerate(order)}
    for source, reader in network.edges:
        assert place[source] < place[reader], f"{reader} runs before {source}, which it reads"  # so there is no cycle
    for name, node in graph.nodes():
        if isinstance(node, Mix):
            _verify_mix(name, node)
        if isinstance(node, Combine) and node.how == "heads":
            _verify_heads(graph, name, node)


def _verify_mix(name: str, mix: Mix) -> None:
    assert mix.variants, f"{name} does something in every case"
    for variant in mix.variants:
        covered = [head for group in variant.groups for head in range(group.first, group.last + 1)]
        assert covered == list(range(mix.first, mix.last + 1)), f"{name}: groups cover {covered}, not {mix.first}..{mix.last}"


def _verify_heads(graph: Graph, name: str, node: Combine) -> None:
    """Every KV group of the layer reaches the join exactly once in every case."""
    assert node.attributes is not None, f"{name} knows how many heads it joins"
    ranges = [_heads_of(graph, source) for source in graph.inputs(name)]
    heads = sorted(head for found in ranges for head in (range(node.attributes.kv_heads) if found is None else found))
    assert heads == list(range(node.attributes.kv_heads)), f"{name} joins KV groups {heads}"


def _heads_of(graph: Graph, name: str) -> tuple[int, ...] | None:
    """The KV groups that a node hands on; None: all of the layer's. The cases of a `when` hand on the same."""
    node = graph.network.nodes[name]["node"]
    if isinstance(node, Mix):
        return tuple(range(node.first, node.last + 1))
    if isinstance(node, Apply) and node.runs:
        return tuple(group for first, last in node.runs for group in range(first, last + 1))
    if not isinstance(node, Combine):
        return None
    found = {_heads_of(graph, source) for source in graph.inputs(name)}
    assert len(found) == 1, f"the cases of {name} cover different heads"
    return found.pop()
