"""The layer graph as data, for `attnc show --stage graph --json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnc.compiler.data import to_data
from attnc.compiler.value import Value

if TYPE_CHECKING:  # networkx
    from attnc.compiler.graph import Graph


class NodeReport(Value):
    """One node: its sort, what it says, and the nodes that it reads."""

    name: str
    sort: str
    inputs: list[str]
    node: dict[str, Any]


class GraphReport(Value):
    """All nodes, in the order in which they can run."""

    schema_version: int = 1
    nodes: list[NodeReport]


def graph_report(graph: Graph) -> GraphReport:
    """The whole graph."""
    nodes = [
        NodeReport(name=name, sort=type(node).__name__.lower(), inputs=graph.inputs(name), node=to_data(node))
        for name, node in graph.nodes()
    ]
    return GraphReport(nodes=nodes)
