"""A skeleton with its holes filled is a kernel file.

A skeleton is a real, importable kernel. Its small functions are holes: here they are exchanged, whole and by their lines, for
text made from the numbers of a `Softmax`, or for the functions of a file in skeletons/holes. The constants at its top are set.
Nothing else changes, and nothing but bounded numbers and truth values enters the text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from attnc.codegen.triton.blocks import blocks
from attnc.codegen.triton.holes import made_holes
from attnc.codegen.triton.known_bugs import refusals
from attnc.compiler.families import BACKWARD, FAMILIES, Softmax

SKELETONS = Path(__file__).parent / "skeletons"

POSITIVE_FORWARD = {"HIDDEN": "tl.constexpr(0.0)", "FLOOR": "tl.constexpr(1e-30)"}
PREFILL = FAMILIES["softmax"][0]
POSITIVE_BACKWARD = {"HIDDEN": "tl.constexpr(0.0)"}
"""Constants where scores are no logarithms but numbers from 0 on."""


def emit(skeleton: str, kernel: Softmax) -> str:
    """The text of a kernel file; `skeleton` is one of the family's. Same arguments, same bytes."""
    assert skeleton in FAMILIES["softmax"], skeleton
    source = (SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8")
    made = made_holes(kernel, by_products=skeleton == PREFILL) | shared_holes(kernel)
    functions = gather(functions_of(source), made, [read_holes(name) for name in chosen_holes(skeleton, kernel)])
    rows = blocks(skeleton, max(kernel.head_width, kernel.value_width), kernel.exponent is not None)
    constants = {
        "FORM": repr((kernel.nears, kernel.strides, kernel.powers, kernel.causal)),
        "HEAD_WIDTH": repr(kernel.head_width),
        "VALUE_WIDTH": repr(kernel.value_width),
        "GROUP": repr(kernel.group),
        "CAP": repr(kernel.cap),
        "EXPONENT": repr(kernel.exponent),
        **({} if skeleton in BACKWARD else {"SINK_LOGIT": repr(kernel.sink_logit)}),
        "BLOCKS": table(rows),
        **(POSITIVE_FORWARD if kernel.exponent is not None and skeleton not in BACKWARD else {}),
        **(POSITIVE_BACKWARD if kernel.exponent is not None and skeleton in BACKWARD else {}),
    }
    text = fill(source, functions, constants)
    if kernel.chunks is not None:
        text = text.replace(
            "\nHEAD_WIDTH =", f"\nCHUNKS = {kernel.chunks!r}  # span and step of what a key stands for\nHEAD_WIDTH =", 1
        )
    met = refusals(text, rows)
    assert not met, f"{skeleton} would meet {', '.join(met)}"
    return text


def fill(source: str, functions: Mapping[str, str], constants: Mapping[str, str]) -> str:
    """`source` with these top-level functions and these constants' values exchanged; every name must be there."""
    lines = source.splitlines()
    missing = set(functions) | set(constants)
    for one in reversed(statements(source)):
        if one.function and one.name in functions:
            lines[one.first : one.end] = functions[one.name].splitlines()
            missing.remove(one.name)
        elif not one.function and one.name in constants:
            comment = lines[one.first].partition("  #")  # a constant's comment stands on its first line
            first, *rest = constants[one.name].splitlines()
            lines[one.first : one.end] = [f"{one.name} = {first}{''.join(comment[1:])}", *rest]
            missing.remove(one.name)
    assert not missing, f"not in the skeleton: {sorted(missing)}"
    return "\n".join(lines) + "\n"


class Statement(NamedTuple):
    """A function, decorators included, or a constant, at the top level of a text: lines[first:end]."""

    name: str
    function: bool
    first: int
    end: int
    kernel: bool = False  # whether the function is compiled for a GPU: it has a decorator


@lru_cache(maxsize=256)  # the same few skeletons and files of holes make all kernels
def statements(source: str) -> tuple[Statement, ...]:
    """In the order of the text."""
    found = []
    for node in ast.parse(source).body:
        assert node.end_lineno is not None
        if isinstance(node, ast.FunctionDef):
            found.append(Statement(node.name, True, first_line(node), node.end_lineno, bool(node.decorator_list)))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.append(Statement(node.targets[0].id, False, node.lineno - 1, node.end_lineno))
    return tuple(found)


def functions_of(source: str) -> dict[str, str]:
    """The text of every top-level function, decorators included."""
    lines = source.splitlines()
    return {one.name: "\n".join(lines[one.first : one.end]) for one in statements(source) if one.function}


def read_holes(name: str) -> dict[str, str]:
    """The functions of a file in skeletons/holes."""
    return functions_of((SKELETONS / "holes" / f"{name}.py").read_text(encoding="utf-8"))


def gather(skeleton: Mapping[str, str], made: Mapping[str, str], files: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The text of every hole. Made text goes before a file's, and a function that the skeleton lacks goes before the first hole
    that follows it in its file.
    """
    holes = {name: text for name, text in made.items() if name in skeleton}
    placed: set[str] = set()
    for functions in files:
        helpers: list[str] = []
        for name, text in functions.items():
            if name in holes or name in placed:
                continue
            placed.add(name)
            helpers.append(made.get(name, text))
            if name in skeleton:
                holes[name] = "\n\n\n".join(helpers)
                helpers = []
        assert not helpers, "a file of holes ends with a function that fills none"
    return holes


def shared_holes(kernel: Softmax) -> dict[str, str]:
    """Functions that several files of holes use."""
    if kernel.exponent is None:
        return {}
    shared = read_holes("softplus_parts")
    if kernel.cap:
        capped = read_holes("softplus_cap") | {"tanh": read_holes("cap")["tanh"]}
        shared |= {"logit": f"{capped['tanh']}\n\n\n{capped['logit']}", "logit_grad": capped["logit_grad"]}
    return shared


def chosen_holes(skeleton: str, kernel: Softmax) -> tuple[str, ...]:
    """Which files of skeletons/holes a kernel needs."""
    backward = skeleton in BACKWARD
    far = f"far{'_queries' * (skeleton == BACKWARD[1])}{'_both_ways' * (not kernel.causal)}"
    softplus = "softplus" if kernel.exponent else "softplus_masses"
    wanted = (
        ("far_turns", kernel.far > 0 and kernel.causal and skeleton == PREFILL),
        (far, kernel.far > 0),
        (f"{softplus}{'_gradient' * backward}", kernel.exponent is not None),
        ("softplus_share_gradient", bool(kernel.exponent) and skeleton == BACKWARD[0]),
        ("cap_gradient" if backward else "cap", kernel.cap and kernel.exponent is None),
        ("sink_logit", kernel.sink_logit and not backward),
    )
    return tuple(name for name, is_wanted in wanted if is_wanted)


def table(rows: Mapping[tuple[str, int], tuple[int, ...]]) -> str:
    """The value of BLOCKS."""
    return "\n".join(["{", *(f'    ("{architecture}", {size}): {row!r},' for (architecture, size), row in rows.items()), "}"])


def first_line(node: ast.FunctionDef) -> int:
    """How many lines stand before a function and its decorators."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
