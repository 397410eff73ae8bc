"""A Gluon skeleton with its holes filled is a kernel file. The holes are those of the Triton skeletons, in Gluon's names: which
keys a query sees, which blocks are walked and how scores are adjusted is said once.
"""

from __future__ import annotations

import re
from pathlib import Path

from attnc.codegen.gluon.blocks import blocks
from attnc.codegen.triton.emit import fill, functions_of, gather, read_holes, table
from attnc.codegen.triton.holes import made_holes
from attnc.codegen.triton.known_bugs import refusals
from attnc.compiler.families import Softmax

HERE = Path(__file__).parent
PREFILL = "gluon_prefill"
"""What its files are called, and its rows in docs/gpu.json."""

SKELETON = "softmax_prefill"
LINE = "from attnc.codegen.gluon.names import block_barrier, tma_load, tma_store\n"


def emit(kernel: Softmax) -> str:
    """The text of the kernel file for many new queries. Same arguments, same bytes."""
    assert kernel.exponent is None, "softplus masses have Triton kernels alone"
    source = (HERE / "skeletons" / f"{SKELETON}.py").read_text(encoding="utf-8")
    far = "far" if kernel.causal else "far_both_ways"
    wanted = ((far, kernel.far > 0), ("cap", kernel.cap), ("sink_logit", kernel.sink_logit))
    made = {name: renamed(text) for name, text in made_holes(kernel).items()}
    files = [{name: renamed(text) for name, text in read_holes(of).items()} for of, is_wanted in wanted if is_wanted]
    rows = blocks(kernel.head_width, kernel.value_width)
    constants = {
        "FORM": repr((kernel.nears, kernel.strides, kernel.powers, kernel.causal)),
        "HEAD_WIDTH": repr(kernel.head_width),
        "VALUE_WIDTH": repr(kernel.value_width),
        "GROUP": repr(kernel.group),
        "CAP": repr(kernel.cap),
        "SINK_LOGIT": repr(kernel.sink_logit),
        "BLOCKS": table(rows),
    }
    text = fill(source, gather(functions_of(source), made, files), constants)
    assert text.count(LINE) == 1, "the skeleton names what moved between versions"
    text = text.replace(LINE, moved_names())
    met = refusals(text, rows)
    assert not met, f"{PREFILL} would meet {', '.join(met)}"
    return text


def renamed(text: str) -> str:
    """A function of Triton's language in Gluon's."""
    return re.sub(r"\btl\.", "gl.", text.replace("@triton.jit", "@gluon.jit"))


def moved_names() -> str:
    """names.py without what every skeleton imports itself."""
    lines = (HERE / "names.py").read_text(encoding="utf-8").splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith("block_barrier"))
    return "".join(lines[first:])
