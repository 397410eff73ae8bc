"""Which kernels of a plan a GPU has run right, as docs/gpu.json records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from attnc.codegen import kernels
from attnc.codegen.gluon import files as gluon
from attnc.codegen.gluon import lists as gluon_lists
from attnc.codegen.triton import lists, verified
from attnc.compiler.device import device, device_names
from attnc.compiler.families import BACKWARD, FAMILIES, Channels, FastWeights, Recurrence, Softmax
from attnc.compiler.graph import Apply, Graph, Mix, Select, Smooth
from attnc.compiler.plain_providers import PlainLaunch
from attnc.compiler.plan import meets, states
from attnc.compiler.planned import Choice, Plan
from attnc.compiler.show import numbers_text
from attnc.compiler.spec import Model, Phase
from attnc.compiler.value import Value

FORWARD = ("scan_chunks", "scan_forward", "scan_outputs", "channel_scan", *FAMILIES["fast"][:-1])
TRAINED = ("softmax_prefill", *BACKWARD, *gluon.IN_GLUON.values(), *FORWARD)
OVER_LISTS = (lists.ATTEND, lists.CHOOSE)
RUN: dict[Phase, tuple[str, ...]] = {
    "train": (
        *TRAINED,
        "scan_backward",
        "scan_values",
        "scan_gradients",
        "scan_flows",
        *OVER_LISTS,
        lists.BACKWARD,
        gluon_lists.PREFILL,
    ),
    "prefill": ("softmax_prefill", gluon.IN_GLUON["softmax_prefill"], *FORWARD, *OVER_LISTS, gluon_lists.PREFILL),
    "decode": ("softmax_decode", "scan_step", "channel_scan", FAMILIES["fast"][-1], *OVER_LISTS),
}
"""The kernels that a phase runs."""


class Unverified(Value):
    """A generated kernel that a plan chose and that has no row in the record."""

    kernel: str
    sha256: str
    phase: Phase
    layers: list[int]


def record(architecture: str) -> frozenset[str]:
    """The digests of all kernels that a GPU of the architecture has run right."""
    with resources.as_file(resources.files("attnc") / "docs" / "gpu.json") as path:
        return digests(path, architecture)


def digests(path: Path, architecture: str) -> frozenset[str]:
    """The digests of a record's rows for an architecture; none where it is not there."""
    rows = verified.read(path) if path.exists() else ()
    return frozenset(row.sha256 for row in rows if row.capability == architecture)


def unverified(plan: Plan, graph: Graph, model: Model) -> list[Unverified]:
    """One row for each such kernel and phase."""
    architecture = device(plan.device).architecture if plan.device in device_names() else ""  # measured on another machine
    known = record(architecture)
    found: dict[tuple[str, Phase], Unverified] = {}
    for choice in plan.choices:
        generated = choice.providers & {"triton", "gluon"}
        for skeleton, digest in _digests(choice, graph, model, architecture) if generated else ():
            if skeleton in RUN[choice.phase] and digest not in known:
                new = Unverified(kernel=skeleton, sha256=digest, phase=choice.phase, layers=[])
                found.setdefault((digest, choice.phase), new).layers.append(choice.layer)
    return list(found.values())


def _digests(choice: Choice, graph: Graph, model: Model, architecture: str) -> Iterator[tuple[str, str]]:
    """(skeleton, digest) of every kernel of a choice's node, whatever the phase."""
    node = graph.network.nodes[choice.node]["node"]
    if isinstance(node, Select):
        (mix,) = (graph.network.nodes[after]["node"] for after in graph.network.successors(choice.node))
        yield from _of_lists(mix, model, architecture, {lists.CHOOSE})
    elif isinstance(node, Mix):
        met = [variant for variant in node.variants if meets(variant.guards, choice.phase)]
        choosing = [any(group.choices for group in variant.groups) for variant in met]
        if any(choosing):
            files = {lists.ATTEND, lists.BACKWARD} | ({gluon_lists.PREFILL} if "gluon" in choice.providers else set())
            yield from _of_lists(node, model, architecture, files)
        if all(choosing):
            return
        family = kernels.family(node, model)
        assert family is not None, "the plan takes a kernel only where the family says the mix"
        own = FAMILIES["softmax"] if "triton" in choice.providers else ()
        named = dict.fromkeys((*(gluon.names(family) if "gluon" in choice.providers else ()), *own))
        for kernel in (family.masses, family) if family.exponent else (family,):
            for name in named:
                yield name, _digest(name, kernel, architecture)
    elif isinstance(node, Apply | Smooth):
        launched = states(node, graph)
        assert launched is not None, "the plan takes a kernel only where a family says the kind"
        assert not isinstance(launched, PlainLaunch), "which has no kernels"
        yield from _of_states(launched.family, architecture)


def unverified_text(rows: list[Unverified]) -> str:
    """A line for each, or nothing."""
    lines = [f"  {row.kernel} {row.sha256[:12]}  {row.phase}, {numbers_text(row.layers)}\n" for row in rows]
    return "\nnot yet compared with the reference on a GPU\n" + "".join(lines) if lines else ""


def _of_lists(mix: Mix, model: Model, architecture: str, files: set[str]) -> Iterator[tuple[str, str]]:
    for text, skeleton in kernels.list_texts(mix, model).items():
        if skeleton in files:
            yield skeleton, _digest_of(text, architecture)


_digest_of = cache(kernels.digest)


@cache
def _of_states(family: Channels | FastWeights | Recurrence, architecture: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, kernels.digest(text, architecture)) for name, text in kernels.of_states(family).items())


@cache
def _digest(name: str, family: Softmax, architecture: str) -> str:
    return kernels.digest(gluon.text(name, family), architecture)
