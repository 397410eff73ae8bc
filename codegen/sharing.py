"""Lines of a class whose softmaxes leave some heads to kinds that keep states: all read one set of projections, and one o."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnc.codegen import projecting
from attnc.codegen.parts import Part
from attnc.compiler.attributes import Attributes
from attnc.compiler.graph import Apply, Mix
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Model

GIVEN = {"q": "all_q", "k": "all_k", "v": "all_v"}
"""What the projections made for all heads of the layer."""


def modules(beside: Mapping[str, Part], slots: int) -> list[str]:
    """Lines of __init__: the kinds, whose storages lie behind the `slots` of the softmaxes."""
    if not beside:
        return []
    lines = ["self.states = nn.Module()"]
    for name, part in beside.items():
        lines.append(f"self.states.{name} = {part.name}(slot + {slots})")
        slots += part.slots
    return lines


def made() -> list[str]:
    """Lines of forward: the projections."""
    axes = {"q": "H D", "k": "G D", "v": "G E"}
    return [f"{name} = self.{letter}_proj(x)  # [T, {axes[letter]}], of all heads" for letter, name in GIVEN.items()]


def join(a: Attributes, mixes: Sequence[Mix], outputs: Sequence[str], states: Sequence[Apply], model: Model) -> list[str]:
    """Lines of forward: each kind over its heads, then all heads side by side, and o. `outputs`: those of the `mixes`."""
    lines, found, ratio = [], {}, a.heads // a.kv_heads
    for mix, name in zip(mixes, outputs, strict=True):
        if a.output_norm is not None:
            lines.append(f"{name} = self.output_norm({name})")
        found[mix.first] = f"{name}.flatten(-2)"
    for at, node in enumerate(states):
        scanned = MIXERS[node.kind.kind].scanned
        assert scanned is not None, "asked only of kinds that lower to states"
        widths = {"q": ratio * a.head_dim, "k": a.head_dim, "v": a.value_dim}
        streams = scanned(node.kind, node.attributes, model).streams
        given = {letter: _rows(GIVEN[letter], node.runs, widths[letter]) for letter in streams}
        if len(node.runs) > 1:
            lines += [f"own_{letter}{at} = torch.cat(({', '.join(parts)}), dim=-1)" for letter, parts in given.items()]
            given = {letter: [f"own_{letter}{at}"] for letter in given}
        name, begin = f"read{at}", 0
        taken = ", ".join(part for parts in given.values() for part in parts)
        lines.append(f"{name} = self.states.{node.name}(x, {taken}, call)  # [T, H E]")
        for first, last in node.runs:
            end = begin + (last - first + 1) * ratio * a.value_dim
            found[first] = name if len(node.runs) == 1 else f"{name}[:, {begin}:{end}]"
            begin = end
    joined = ", ".join(found[first] for first in sorted(found))
    return [*lines, f"o = torch.cat(({joined}), dim=-1)  # [T, heads * E]", f"return {projecting.scaled('self.o_proj(o)', a)}"]


def _rows(name: str, runs: Sequence[tuple[int, int]], width: int) -> list[str]:
    """What belongs to some KV groups, `width` numbers each."""
    return [f"{name}[:, {first * width}:{(last + 1) * width}]" for first, last in runs]
