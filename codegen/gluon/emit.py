"""A Gluon skeleton with its holes filled is a kernel file. The holes are those of the Triton skeletons, in Gluon's names: which
keys a query sees, which blocks are walked and how scores are adjusted is said once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from attnc.codegen.gluon.blocks import Row, blocks
from attnc.codegen.gluon.far import far_holes
from attnc.codegen.gluon.joining import joined
from attnc.codegen.triton.emit import fill, functions_of, gather, read_holes, table
from attnc.codegen.triton.holes import made_holes
from attnc.codegen.triton.known_bugs import refusals
from attnc.compiler.families import Softmax

PREFILL = "gluon_prefill"
"""What its files are called, and its rows in docs/gpu.json."""

SKELETON = "softmax_prefill"


def emit(kernel: Softmax) -> str:
    """The text of the kernel file for many new queries. Same arguments, same bytes."""
    assert kernel.exponent is None, "softplus masses have Triton kernels alone"
    far = "far" if kernel.causal else "far_both_ways"
    wanted = ((far, kernel.far > 0), ("cap", kernel.cap), ("sink_logit", kernel.sink_logit))
    return filled(
        SKELETON,
        kernel,
        blocks(kernel.head_width, kernel.value_width, kernel.far),
        [name for name, is_wanted in wanted if is_wanted],
        {"SINK_LOGIT": repr(kernel.sink_logit)},
    )


def filled(
    skeleton: str,
    kernel: Softmax,
    rows: Mapping[tuple[str, int], Row],
    holes: Iterable[str],
    constants: Mapping[str, str],
    functions: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A skeleton with its parts, for a kernel: `rows` are its BLOCKS, `holes` files in skeletons/holes of Triton's kernels,
    `constants` and `functions` those beside what every skeleton of the family has.
    """
    source = joined(skeleton)
    made = {name: renamed(text) for name, text in made_holes(kernel).items()} | far_holes(kernel) | dict(functions)
    files = [{name: renamed(text) for name, text in read_holes(name).items()} for name in holes]
    every = {
        "FORM": repr((kernel.nears, kernel.strides, kernel.powers, kernel.causal)),
        "HEAD_WIDTH": repr(kernel.head_width),
        "VALUE_WIDTH": repr(kernel.value_width),
        "GROUP": repr(kernel.group),
        "CAP": repr(kernel.cap),
        "BLOCKS": table(rows),
    }
    text = fill(source, gather(functions_of(source), made, files), {**every, **constants})
    met = refusals(text, rows)
    assert not met, f"{skeleton} in Gluon would meet {', '.join(met)}"
    return text


def renamed(text: str) -> str:
    """A function of Triton's language in Gluon's."""
    return re.sub(r"\btl\.", "gl.", text.replace("@triton.jit", "@gluon.jit"))
