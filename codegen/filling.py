"""Weights of a model whose attention stands beside something new: what they are called there, and what starts from a seed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from attnc.compiler.graph import Graph, Mix
from attnc.compiler.parameters import place

OWN = "self_attn"
"""Where a layer's attention lies if it is the layer's only mixer."""

MOST = 4
"""Names that a line lists."""


class Fill(NamedTuple):
    """`homes`: where the only softmax attention of a layer lies; layers with several have none."""

    seed: int
    homes: Mapping[str, str]

    def name(self, name: str, wanted: Collection[str]) -> str:
        """What the tensor `name` of a checkpoint is called in the spec."""
        found = re.match(rf"model\.layers\.(\d+)\.{OWN}\.(.+)", name)
        if name in wanted or found is None or found[1] not in self.homes:
            return name
        return f"model.layers.{found[1]}.{self.homes[found[1]]}.{found[2]}"

    def told(self, renamed: Mapping[str, str], lacking: Sequence[str]) -> tuple[str, ...]:
        """A line for attention that has another place, and one for the tensors that start."""
        lines = []
        moved = {new.split(".")[2]: self.homes[new.split(".")[2]] for name, new in renamed.items() if new != name}
        for home in dict.fromkeys(moved.values()):
            layers = [layer for layer in moved if moved[layer] == home]
            lines.append(f"the attention of {_count(len(layers), 'layer')} of the weights is `{home}` here")
        if lacking:
            kinds = list(dict.fromkeys(re.sub(r"^model\.layers\.\d+\.", "", name) for name in lacking))
            more = f" and {len(kinds) - MOST} more" if len(kinds) > MOST else ""
            listed = ", ".join(kinds[:MOST]) + more
            lines.append(f"{_count(len(lacking), 'tensor')} that the weights lack start from seed {self.seed}: {listed}")
        return tuple(lines)


def fill(graph: Graph, seed: int) -> Fill:
    """What a build of this graph fills with."""
    homes: dict[str, set[str]] = {}
    for _, node in graph.nodes():
        if isinstance(node, Mix):
            homes.setdefault(str(node.layer), set()).add(place(node))
    return Fill(seed, {layer: next(iter(found)) for layer, found in homes.items() if len(found) == 1})


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
