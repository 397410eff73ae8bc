"""The kernel files of keys that content chose: attention over lists beside intervals, and the choice itself.

As for matrix states (scan.py): what a skeleton imports is put in its place, whole functions are exchanged, constants set.
"""

from __future__ import annotations

from functools import cache

from attnc.codegen.triton.emit import SKELETONS, fill, functions_of, gather, read_holes, table
from attnc.codegen.triton.holes import made_holes
from attnc.codegen.triton.known_bugs import refusals
from attnc.codegen.triton.list_blocks import blocks, unit_blocks
from attnc.codegen.triton.scan import joined
from attnc.compiler.families import Listed, Selector, Softmax

ATTEND = "lists_attend"
BACKWARD = "lists_backward"
CHOOSE = "lists_choose"

UNIT_NUMBERS = 64 * 128
"""Of a unit's keys, that a program holds."""

THIN = 8
"""Heads that share a list, at most, where lists are read by units: more of them fill the lines of a small tile."""


@cache
def emit_lists(skeleton: str, kernel: Listed) -> str:
    """The text of a kernel file of attention over lists. Same arguments, same bytes."""
    softmax = kernel.softmax
    source = joined((SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8"))
    forward = skeleton == ATTEND
    wanted = (
        ("far", softmax.far > 0),
        ("far_queries", softmax.far > 0 and not forward),
        ("cap" if forward else "cap_gradient", softmax.cap),
        ("sink_logit", softmax.sink_logit and forward),
    )
    made = made_holes(softmax) | ({"apart": FAR_APART} if softmax.far else {})
    functions = gather(functions_of(source), made, [read_holes(name) for name, is_wanted in wanted if is_wanted])
    rows = blocks(skeleton, max(softmax.head_width, softmax.value_width))
    of_units = unit_blocks(skeleton, max(softmax.head_width, softmax.value_width))
    of_forward = {
        "SINK_LOGIT": repr(softmax.sink_logit),
        "DISTANCES": repr(kernel.distances),
        "BESIDE": repr(kernel.beside),
    }
    constants = {
        "FORM": repr((softmax.nears, softmax.strides, softmax.powers, softmax.causal)),
        "HEAD_WIDTH": repr(softmax.head_width),
        "VALUE_WIDTH": repr(softmax.value_width),
        "GROUP": repr(softmax.group),
        "MEMBERS": repr(kernel.members),
        "UNIT": repr(kernel.unit),
        "CAP": repr(softmax.cap),
        **(of_forward if forward else {}),
        "BY_UNITS": repr(by_units(kernel)),
        "UNIT_BLOCKS": "\n".join(["{", *(f'    "{name}": {row!r},' for name, row in of_units.items()), "}"]),
        "BLOCKS": table(rows),
    }
    text = fill(source, functions, constants)
    met = refusals(text, rows)
    assert not met, f"{skeleton} would meet {', '.join(met)}"
    return text


def by_units(kernel: Listed) -> bool:
    """Whether reading lists of single queries unit by unit moves fewer bytes than reading each list's keys, and fills tiles.

    On an H200 (commit 4b7cb60) 16 heads read 16 units of 64 in 6.1 ms query by query, in 8.3 by units; 4 heads in 27 and 9.4.
    """
    softmax = kernel.softmax
    keys = kernel.unit * (softmax.head_width + softmax.value_width)
    queries = kernel.members * (softmax.head_width + 2 * softmax.value_width)  # read, left and read
    fits = kernel.unit * max(softmax.head_width, softmax.value_width) <= UNIT_NUMBERS
    alone = not kernel.distances and not kernel.beside
    return alone and kernel.members <= THIN and 16 <= kernel.unit <= 128 and fits and queries < keys


@cache
def emit_choose(selector: Selector, softmax: Softmax) -> str:
    """The text of a kernel file that makes lists for a launch. Same arguments, same bytes."""
    source = joined((SKELETONS / f"{CHOOSE}.py").read_text(encoding="utf-8"))
    holes = [read_holes("cap")] if softmax.cap else []
    functions = gather(functions_of(source), made_holes(softmax), holes)
    constants = {
        "FORM": repr((softmax.nears, softmax.strides, softmax.powers, softmax.causal)),
        "HEAD_WIDTH": repr(softmax.head_width),
        "GROUP": repr(softmax.group),
        "UNIT": repr(selector.unit),
        "RUNS": repr((selector.span, selector.step)),
        "COARSE": repr(selector.lse),
        "BOUNDS": repr(selector.keys == "bounds"),
        "SHARES": repr(selector.score == "softmax"),
        "SHARED": f'"{selector.shared}"',
        "POOL": f'"{selector.heads}"',
        "FOLD": f'"{selector.fold}"',
        "OVERLAP": f'"{selector.overlap}"',
        "CAP": repr(softmax.cap),
        "SELECTOR": words_of(selector),
        "BLOCKS": table(blocks(CHOOSE, softmax.head_width)),
    }
    text = fill(source, functions, constants)
    met = refusals(text, blocks(CHOOSE, softmax.head_width))
    assert not met, f"{CHOOSE} would meet {', '.join(met)}"
    return text


def words_of(one: Selector) -> str:
    """What of a selector its kernels are made for, as runtime/list_kernels.py asks for it."""
    words = (one.unit, one.keys, one.span, one.step, one.score, one.lse, one.shared, one.heads, one.fold, one.overlap)
    texts = [f'"{word}"' if isinstance(word, str) else repr(word) for word in words]
    return f"({', '.join(texts)})"


FAR_APART = '''@triton.jit
def apart(numbers, first, begin, end):
    """Whether no query from `first` on sees a key from begin up to, not including, end by the intervals: it may, far back."""
    return end < begin'''
