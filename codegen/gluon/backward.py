"""The kernel files of the backward pass in Gluon: first that for queries, then that for keys and values."""

from __future__ import annotations

from attnc.codegen.gluon.blocks import ARCHITECTURE, Row, copied_width
from attnc.codegen.gluon.emit import filled
from attnc.compiler.families import BACKWARD, Softmax

FILES = dict(zip(BACKWARD, ("gluon_backward_queries", "gluon_backward_keys"), strict=True))
"""Skeleton, named as its like in Triton -> what its files are called, and its rows in docs/gpu.json."""

KEY_ROWS: dict[tuple[int, int], Row] = {  # queries, keys, warps, slots for queries, registers, EARLY
    (64, 64): (64, 128, 12, 3, 232, 1),
    (64, 128): (64, 128, 12, 3, 232, 1),
    (128, 64): (64, 128, 12, 3, 232, 1),
    (128, 128): (64, 128, 12, 3, 240, 1),
}
CROWDED_KEYS: Row = (32, 128, 12, 4, 240, 1)
"""Of widths of 128, where masks or gradients of a cap take registers that half as many queries leave free."""
QUERY_ROWS: dict[tuple[int, int], Row] = {  # queries, keys, warps, slots for keys, slots for tiles of queries, registers
    (64, 64): (128, 128, 12, 3, 2, 232),
    (64, 128): (128, 64, 12, 3, 2, 232),
    (128, 64): (128, 64, 12, 3, 2, 232),
    (128, 128): (128, 64, 12, 3, 2, 232),
}
"""What fits into 227 KiB and 232 registers; wider sums of gradients do not."""
ROWS = dict(zip(BACKWARD, (QUERY_ROWS, KEY_ROWS), strict=True))


def fits(kernel: Softmax) -> bool:
    """Whether there are rows for heads of these widths."""
    return (copied_width(kernel.head_width), copied_width(kernel.value_width)) in KEY_ROWS


def emit(skeleton: str, kernel: Softmax) -> str:
    """The text of a kernel file. Same arguments, same bytes."""
    assert kernel.exponent is None, "softplus masses have Triton kernels alone"
    widths = copied_width(kernel.head_width), copied_width(kernel.value_width)
    far = f"far{'_queries' * (skeleton == BACKWARD[1])}{'_both_ways' * (not kernel.causal)}"
    wanted = ((far, kernel.far > 0), ("cap_gradient", kernel.cap))
    row = ROWS[skeleton][widths]
    if skeleton == BACKWARD[1] and widths == (128, 128) and (kernel.far or kernel.cap or kernel.nears > 1):
        row = CROWDED_KEYS
    rows = {(ARCHITECTURE, 2): row}
    return filled(skeleton, kernel, rows, [name for name, is_wanted in wanted if is_wanted], {})
