"""Cases in which a Triton version, or the assembler that it brings along, is known to make wrong code; `emit` refuses them.

A row says which versions and architectures it concerns, what a kernel must contain to meet it, and where that is known from.
Rows that concern no kernel of this project yet stay: they are what a new skeleton must not contain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A kernel about to be emitted or launched: what of it matters to the rows below.

    features  words for constructs in its text: see `features_of`
    """

    features: frozenset[str]
    head_width: int = 0
    block_rows: int = 0
    warps: int = 0


@dataclass(frozen=True)
class Bug:
    """A known wrong-code case: versions from `since` up to, not including, `until`; `architectures` empty means all."""

    name: str
    since: Version
    until: Version
    architectures: frozenset[str]
    meets: Callable[[Candidate], bool]
    evidence: str
    instead: str


LATER: Version = (99,)

BUGS = (
    Bug(
        name="dot of a transposed dot result",
        since=(3, 4, 0),
        until=(3, 7, 1),
        architectures=frozenset({"sm_90"}),
        meets=lambda kernel: "dot_of_transposed_result" in kernel.features,
        evidence="wrong gradients at 64 columns, right at 32 and 128: fla-org/flash-linear-attention issues 640, 826, 983",
        instead="form the transposed product directly (K Q^T), or go through memory",
    ),
    Bug(
        name="warp specialisation of a loop",
        since=(3, 6, 0),
        until=LATER,
        architectures=frozenset({"sm_90"}),
        meets=lambda kernel: "warp_specialize" in kernel.features,
        evidence="illegal memory access with 128 query rows on an H100, Triton 3.6.0 and 3.9.0; compile errors: "
        "triton-lang/triton issues 9728, 8260, 7658",
        instead="the Gluon kernels",
    ),
    Bug(
        name="block pointers",
        since=(3, 6, 0),
        until=LATER,
        architectures=frozenset(),
        meets=lambda kernel: "block_pointer" in kernel.features,
        evidence="make_block_ptr and advance are removed from Triton's main branch",
        instead="plain pointers, or tensor descriptors",
    ),
    Bug(
        name="triangular solve with four warps",
        since=(3, 4, 0),
        until=LATER,
        architectures=frozenset({"sm_90"}),
        meets=lambda kernel: "triangular_solve_gradient" in kernel.features and kernel.block_rows == 64 and kernel.warps >= 4,
        evidence="wrong dk and dbeta or an illegal access, on 3.7.1 too: fla-org/flash-linear-attention issues 984, 988",
        instead="two warps",
    ),
)

WATCHED = (
    (
        "a register operand of an asynchronous product is reused before it is read",
        "ptxas before 13.3 on sm_90, which Triton 3.6 and 3.7 bring along: triton-lang/triton issues 9433, 11781; "
        "fla-org/flash-linear-attention issue 1262",
    ),
)
"""Cases whose trigger is not known, so that no kernel can be refused; tests/gpu compares products of integers exactly."""


def features_of(text: str) -> frozenset[str]:
    """The constructs of an emitted text that a row may name."""
    words = {
        "warp_specialize": "warp_specialize",
        "block_pointer": "make_block_ptr",
        "dot_of_transposed_result": "tl.dot(tl.trans(",
    }
    return frozenset(feature for feature, word in words.items() if word in text)


def known(kernel: Candidate, version: Version, architecture: str) -> tuple[Bug, ...]:
    """The rows that this kernel meets on this Triton version and architecture."""
    return tuple(
        bug
        for bug in BUGS
        if bug.since <= version < bug.until
        and (not bug.architectures or architecture in bug.architectures)
        and bug.meets(kernel)
    )
