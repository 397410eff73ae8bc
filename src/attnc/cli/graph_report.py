"""The layer graph as data, for `attnc show --stage graph --json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, SerializeAsAny

from attnc.compiler.value import Value

if TYPE_CHECKING:  # networkx
    from attnc.compiler.graph import Graph


class NodeReport(BaseModel):
    """One node: its sort, what it says, and the nodes that it reads."""

    name: str
    sort: str
    inputs: list[str]
    node: SerializeAsAny[Value]


class GraphReport(BaseModel):
    """All nodes, in the order in which they can run."""

    schema_version: int = 1
    nodes: list[NodeReport]


def graph_report(graph: Graph) -> GraphReport:
    """The whole graph."""
    nodes = [
        NodeReport(name=name, sort=type(node).__name__.lower(), inputs=graph.inputs(name), node=node)
        for name, node in graph.nodes()
    ]
    return GraphReport(nodes=nodes)
