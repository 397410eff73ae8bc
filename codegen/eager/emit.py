"""The eager backend: reference.py, which says with plain tensors what a built model means.

The functions of the kinds that a plan uses are copied from compiler/mixers as they stand; nothing else of the compiler travels.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from attnc.compiler.attributes import Softplus
from attnc.compiler.graph import Apply, Graph, HeadGroup, Mix, RouteTokens
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.mixers.softmax import softplus_weights
from attnc.compiler.value import Text

HEADER = '''"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))
'''


def emit(graph: Graph) -> tuple[str, dict[tuple[tuple[Kind, ...], bool], str]]:
    """The text of reference.py, and for every union of key sets with its causality the name of its mask function."""
    unions: dict[tuple[tuple[Kind, ...], bool], HeadGroup | None] = {}
    copied: dict[str, Callable[..., Any]] = {}
    for _, node in graph.nodes():
        match node:
            case Mix(variants=variants, attributes=attributes):
                for group in (group for variant in variants for group in variant.groups):
                    unions.setdefault((group.keys, attributes.causal), group)
            case RouteTokens(alternatives=alternatives, attributes=attributes):
                for keys in alternatives:
                    unions.setdefault((keys, attributes.causal), None)
            case Apply(kind=kind):
                reference = MIXERS[kind.kind].reference  # one that lowers to states has its formula here too
                assert reference is not None, f"{kind.kind} is built, so it has a reference"
                copied[reference.__name__] = reference
            case _:
                pass
    for keys, _ in unions:
        for key in keys:
            if MIXERS[key.kind].own_keys(key):
                continue
            mask = MIXERS[key.kind].mask
            assert mask is not None, f"{key.kind} is a key set, so it has a mask"
            copied[mask.__name__] = mask
    scores = {
        node.attributes.score.word
        for _, node in graph.nodes()
        if isinstance(node, Mix) and isinstance(node.attributes.score, Softplus)
    }
    if scores:
        copied["softplus_weights"] = softplus_weights
    names = {union: f"visible_{place}" for place, union in enumerate(unions)}
    parts = [HEADER, *(_source(function) for function in copied.values())]
    parts += [_visible(names[union], union, group) for union, group in unions.items()]
    return "\n\n".join(part.rstrip() + "\n" for part in parts), names


def _visible(name: str, union: tuple[tuple[Kind, ...], bool], group: HeadGroup | None) -> str:
    """The mask of one union: its key sets' masks, joined by `|`."""
    keys, causal = union
    comment = f"# {group.origin}\n" if group is not None else ""
    joined = "\n        | ".join(_call(key, causal) for key in keys)
    lines = [
        f"{comment}def {name}(i: Any, j: Any, length: int) -> Any:",
        f'    """{_words(keys)}: which keys each query sees, [Nq, Nk]."""',
        f"    return (\n        {joined}\n    )" if len(keys) > 1 else f"    return {joined}",
    ]
    return "\n".join(lines)


def _call(key: Kind, causal: bool) -> str:
    mixer = MIXERS[key.kind]
    if mixer.own_keys(key):
        return "(j < 0)"
    assert mixer.mask is not None, f"{key.kind} is a key set"
    numbers = mixer.sizes(key, Text("length"))
    arguments = "".join(f", {name}={value}" for name, value in numbers.items())
    return f"{mixer.mask.__name__}(i, j, causal={causal}{arguments})"


def _words(keys: tuple[Kind, ...]) -> str:
    return " | ".join(key.kind for key in keys)


def _source(function: Callable[..., Any]) -> str:
    """A function's text, without comments that speak to the linters of the compiler's own files."""
    text = textwrap.dedent(inspect.getsource(function)).replace("  # noqa: ARG001", "")
    assert isinstance(ast.parse(text).body[0], ast.FunctionDef), f"{function.__name__} is one function"
    return text
