"""Which kernels of a plan a GPU has run right, as docs/gpu.json records."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import BaseModel

from attnc.codegen import kernels
from attnc.codegen.triton import verified
from attnc.codegen.triton.emit import emit
from attnc.compiler.families import Softmax
from attnc.compiler.graph import Graph, Mix
from attnc.compiler.planned import Plan
from attnc.compiler.show import numbers_text
from attnc.compiler.spec import Model, Phase


class Unverified(BaseModel):
    """A generated kernel that a plan chose and that has no row in the record."""

    kernel: str
    sha256: str
    phase: Phase
    layers: list[int]


def record() -> frozenset[str]:
    """The digests of all kernels that a GPU has run right."""
    with resources.as_file(resources.files("attnc") / "docs" / "gpu.json") as path:
        return digests(path)


def digests(path: Path) -> frozenset[str]:
    """The digests of a record's rows; none where it is not there."""
    return frozenset(row.sha256 for row in verified.read(path)) if path.exists() else frozenset()


def unverified(plan: Plan, graph: Graph, model: Model) -> list[Unverified]:
    """One row for each such kernel and phase."""
    known = record()
    found: dict[tuple[str, Phase], Unverified] = {}
    for choice in plan.choices:
        node = graph.network.nodes[choice.node]["node"]
        if choice.provider != "triton" or not isinstance(node, Mix):
            continue
        family = kernels.family(node, model)
        assert family is not None, "the plan takes a kernel only where the family says the mix"
        skeleton = "softmax_decode" if choice.phase == "decode" else "softmax_prefill"
        digest = _digest(skeleton, family)
        if digest not in known:
            row = found.setdefault(
                (digest, choice.phase), Unverified(kernel=skeleton, sha256=digest, phase=choice.phase, layers=[])
            )
            row.layers.append(choice.layer)
    return list(found.values())


def unverified_text(rows: list[Unverified]) -> str:
    """A line for each, or nothing."""
    lines = [f"  {row.kernel} {row.sha256[:12]}  {row.phase}, {numbers_text(row.layers)}\n" for row in rows]
    return "\nnot yet compared with the reference on a GPU\n" + "".join(lines) if lines else ""


@cache
def _digest(skeleton: str, family: Softmax) -> str:
    return kernels.digest(emit(skeleton, family))
