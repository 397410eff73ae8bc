"""The eager backend: reference.py, which says with plain tensors what a built model means.

The functions of the kinds that a plan uses are copied from compiler/mixers as they stand; nothing else of the compiler travels.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from attnc.codegen import selecting
from attnc.compiler.attributes import Softplus
from attnc.compiler.graph import Apply, Condense, Graph, HeadGroup, Mix, RouteTokens, Smooth, is_static
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.mixers.channels import channel_states
from attnc.compiler.mixers.softmax import softplus_weights
from attnc.compiler.value import Text

HEADER = '''"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

{more}from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))
'''


Union = tuple[tuple[Kind, ...], bool]
"""A union of key sets, and its causality."""


class Masks(dict[Union, str]):
    """The mask function of each union in reference.py, of keys that content does not choose; and what chooses the others."""

    def __init__(self, unions: Iterable[Union]) -> None:
        super().__init__((union, f"visible_{place}") for place, union in enumerate(unions))
        self.choices: dict[tuple[tuple[Kind, ...], Kind, int], str] = {}

    def chosen(self, keys: tuple[Kind, ...], kind: Kind, ratio: int) -> str:
        """The function that says what `kind` chooses in a union, for so many query heads a KV head."""
        return self.choices.setdefault((keys, kind, ratio), f"chosen_{len(self.choices)}")


def emit(graph: Graph) -> tuple[str, Masks]:
    """The text of reference.py, and the names of its functions."""
    unions: dict[Union, HeadGroup | None] = {}
    choices: list[tuple[tuple[Kind, ...], Kind, int]] = []
    copied: dict[str, Callable[..., Any]] = {}
    for _, node in graph.nodes():
        match node:
            case Mix(variants=variants, attributes=attributes):
                for group in (group for variant in variants for group in variant.groups):
                    unions.setdefault((group.keys, attributes.causal), group)
                    choices += [(group.keys, kind, attributes.heads // attributes.kv_heads) for kind in group.choices]
            case RouteTokens(alternatives=alternatives, attributes=attributes):
                for keys in alternatives:
                    unions.setdefault((keys, attributes.causal), None)
            case Condense(group=group, attributes=attributes):
                unions.setdefault((group.keys, attributes.causal), group)
                copied |= {formula.__name__: formula for formula in formulas_of(node, graph)}
            case Apply() | Smooth():
                copied |= {formula.__name__: formula for formula in formulas_of(node, graph)}
            case _:
                pass
    for key in (key for keys, _ in unions for key in keys):
        copied |= {function.__name__: function for function in _functions(key)}
    scores = {
        node.attributes.score.word
        for _, node in graph.nodes()
        if isinstance(node, Mix) and isinstance(node.attributes.score, Softplus)
    }
    if scores:
        copied["softplus_weights"] = softplus_weights
    names = Masks(unions)
    for keys, kind, ratio in choices:
        names.chosen(keys, kind, ratio)
    parts = [HEADER.format(more="import functools\n" if choices else ""), *(_source(function) for function in copied.values())]
    parts += [_visible(names[union], union, group) for union, group in unions.items()]
    for (keys, kind, ratio), name in names.choices.items():
        parts.append(selecting.chosen_text(name, kind, names[keys, True], ratio))
    return "\n\n".join(part.rstrip() + "\n" for part in parts), names


def _functions(key: Kind) -> tuple[Callable[..., Any], ...]:
    """What says which keys a key set holds; learned keys need nothing."""
    mixer = MIXERS[key.kind]
    if not is_static(key):
        return mixer.formulas
    assert mixer.mask is not None, f"{key.kind} is a key set, so it has a mask"
    return (mixer.mask,)


def formulas_of(node: Apply | Condense | Smooth, graph: Graph) -> tuple[Callable[..., Any], ...]:
    """The reference of a kind that is a mixer by itself; one that lowers to a family's launches has the formula of these."""
    if isinstance(node, Smooth):
        return (channel_states,)
    declared, given = MIXERS[node.kind.kind], (node.kind, node.attributes, graph.model)
    if declared.taught is not None:
        return declared.taught(*given).formulas
    plain = declared.condensed if isinstance(node, Condense) else declared.plain
    if plain is not None:
        return tuple(plain(*given).formulas)
    lower = declared.scanned or declared.spaced
    if lower is not None:
        return (lower(*given).formula,)
    assert declared.reference is not None, f"{node.kind.kind} is built, so it has a reference"
    return (declared.reference,)


def _visible(name: str, union: Union, group: HeadGroup | None) -> str:
    """The mask of one union: its key sets' masks, joined by `|`; no key where content chooses them all."""
    keys, causal = union
    fixed = tuple(key for key in keys if MIXERS[key.kind].chooses is None)
    comment = f"# {group.origin}\n" if group is not None else ""
    joined = "\n        | ".join(_call(key, causal) for key in fixed) or "(i < 0) & (j < 0)"
    said = _words(fixed) or f"beside {_words(keys)} nothing"
    lines = [
        f"{comment}def {name}(i: Any, j: Any, length: int) -> Any:",
        f'    """{said}: which keys each query sees, [Nq, Nk]."""',
        f"    return (\n        {joined}\n    )" if len(fixed) > 1 else f"    return {joined}",
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
