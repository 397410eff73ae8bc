"""The kernel file of attention over lists of chosen keys in Gluon: for many queries, whose lists many of them share."""

from __future__ import annotations

from attnc.codegen.gluon.blocks import ARCHITECTURE, copied_width, list_row
from attnc.codegen.gluon.emit import filled, renamed
from attnc.codegen.triton.lists import FAR_APART
from attnc.compiler.families import Listed

PREFILL = "gluon_lists"
"""What its files are called, and its rows in docs/gpu.json."""

SKELETON = "lists_prefill"
LEAST_UNIT = 64


def fits(kernel: Listed) -> bool:
    """Whether it reads one list, of units that are whole copied blocks, and its rows are copied."""
    softmax = kernel.softmax
    if kernel.distances or kernel.beside:
        return False
    return kernel.unit % LEAST_UNIT == 0 and softmax.head_width % 8 == softmax.value_width % 8 == 0


def emit(kernel: Listed) -> str:
    """The text of the kernel file. Same arguments, same bytes."""
    assert fits(kernel), kernel
    softmax = kernel.softmax
    wanted = (("far", softmax.far > 0), ("cap", softmax.cap), ("sink_logit", softmax.sink_logit))
    return filled(
        SKELETON,
        softmax,
        {(ARCHITECTURE, 2): list_row(copied_width(softmax.head_width), copied_width(softmax.value_width), kernel.unit)},
        [name for name, is_wanted in wanted if is_wanted],
        {"SINK_LOGIT": repr(softmax.sink_logit), "MEMBERS": repr(kernel.members), "UNIT": repr(kernel.unit)},
        {"apart": renamed(FAR_APART)} if softmax.far else {},
    )
