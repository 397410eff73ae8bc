"""Cases in which a Triton version, or the assembler that it brings along, is known to make wrong code; `emit` refuses them.

A row says which versions and architectures it concerns, what a kernel must contain to meet it, and where that is known from.
Rows that concern no kernel of this project yet stay: they are what a new skeleton must not contain.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

Version = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A kernel about to be emitted or launched: what of it matters to the rows below.

    features    words for constructs in its text: see `features_of`
    block_rows  rows of a block
    """

    features: frozenset[str]
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
SUPPORTED: tuple[Version, Version] = ((3, 6, 0), (3, 10, 0))
"""The first version of Triton that is supported, and the first that is not."""

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
    (
        "gradients of the gated delta rule (scan_gradients) with two stages, or with 32 tokens, 64 channels and 8 warps",
        "seen on an H200, Triton 3.6.0: gradients of keys 3 to 17 times further off at 128 tokens of width 64, another error "
        "each time, right with one stage; NaN at 32 tokens of width 256, right with 4 warps or 32 channels",
    ),
)
"""Cases whose trigger is not known, so that no kernel can be refused: `attnc verify` and tests/gpu compare integers exactly."""


@lru_cache(maxsize=256)  # builds of one process mostly hold the same few kernels
def features_of(text: str) -> frozenset[str]:
    """The constructs of a kernel's text that a row may name; those that no text shows are in its constant CONSTRUCTS."""
    tree = ast.parse(text)
    found = {name for node in tree.body if isinstance(node, ast.Assign) for name in _declared(node)}
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="warp_specialize", value=value):
                found |= {"warp_specialize"} if not (isinstance(value, ast.Constant) and not value.value) else set()
            case ast.Attribute(attr="make_block_ptr"):
                found.add("block_pointer")
            case ast.FunctionDef() if _dots_transposed_result(node):
                found.add("dot_of_transposed_result")
    return frozenset(found)


def _declared(node: ast.Assign) -> tuple[str, ...]:
    """The words of CONSTRUCTS = (...)."""
    named = any(isinstance(target, ast.Name) and target.id == "CONSTRUCTS" for target in node.targets)
    return tuple(ast.literal_eval(node.value)) if named else ()


def _dots_transposed_result(function: ast.FunctionDef) -> bool:
    """Whether some product's first operand is a transposed value that comes, perhaps through arithmetic, from a product."""
    nodes = list(ast.walk(function))
    operands = [node.args[0] for node in nodes if isinstance(node, ast.Call) and _calls(node, "dot") and node.args]
    turned = [value for operand in operands for value in _transposed(operand)]
    if not turned:
        return False
    results = _results(nodes)
    return any(product or names & results for product, names in map(_parts, turned))


def _results(nodes: list[ast.AST]) -> set[str]:
    """The names that hold products, perhaps through arithmetic; nodes: all of a function."""
    assigned = [
        node for node in nodes if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None
    ]
    made = []
    for node in assigned:
        assert node.value is not None
        written = ast.walk(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        made.append(({target.id for target in written if isinstance(target, ast.Name)}, *_parts(node.value)))
    results: set[str] = set()
    while True:
        more = {name for targets, product, names in made if product or names & results for name in targets}
        if more <= results:
            return results
        results |= more


def _parts(value: ast.AST) -> tuple[bool, set[str]]:
    """Whether a product is part of an expression, and the names in it; what is loaded from memory is neither."""
    product, names, left = False, set(), [value]
    while left:
        node = left.pop()
        if _calls(node, "load"):
            continue
        product = product or _calls(node, "dot")
        if isinstance(node, ast.Name):
            names.add(node.id)
        left += ast.iter_child_nodes(node)
    return product, names


def _transposed(operand: ast.AST) -> Iterator[ast.AST]:
    """The transposed values within an operand."""
    for node in ast.walk(operand):
        if isinstance(node, ast.Attribute) and node.attr == "T":
            yield node.value
        elif _calls(node, "trans") or _calls(node, "permute"):
            yield node


def _calls(node: ast.AST, name: str) -> bool:
    """Whether a node is a call of tl.NAME, or of a tensor's method of that name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name


def known(kernel: Candidate, version: Version, architecture: str) -> tuple[Bug, ...]:
    """The rows that this kernel meets on this Triton version and architecture."""
    return tuple(
        bug
        for bug in BUGS
        if bug.since <= version < bug.until
        and (not bug.architectures or architecture in bug.architectures)
        and bug.meets(kernel)
    )


def refusals(text: str, rows: Mapping[tuple[str, int], tuple[int, ...]]) -> tuple[str, ...]:
    """The names of the cases that a kernel's text would meet, with these blocks, on any supported version of Triton.

    rows: (architecture, bytes of an element) -> blocks, of which the first counts rows and the third warps.
    """
    features = features_of(text)
    first, end = SUPPORTED
    met = [
        bug.name
        for (architecture, _), blocks in rows.items()
        for bug in BUGS
        if bug.since < end and bug.until > first
        if not bug.architectures or architecture in bug.architectures
        if bug.meets(Candidate(features, block_rows=blocks[0], warps=blocks[2]))
    ]
    return tuple(dict.fromkeys(met))
