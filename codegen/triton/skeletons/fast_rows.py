"""What keeps the norms of rows of fast weights: before a chunk writes, each row of W is multiplied by its share,

    W~ = share W,  share = goal / |W|;  back: the gradient of W is share (G - W~ (G . W~) / goal^2), of goal G . W~ / goal

with G that of W~. Rows of a chunk that is not written stay as they are: their goal is negative. What a chunk reads is W.

The emitter leaves out these functions, and what asks for WEIGHT_NORM, where rows keep no norms.
"""

import triton
import triton.language as tl


@triton.jit
def share(squares, goals, row, ROWS: tl.constexpr):
    """What rows are multiplied by, whose numbers' squares add up to `squares`. Rounded once: each chunk multiplies by it."""
    goal = tl.load(goals + row, mask=row < ROWS, other=-1.0)
    least = tl.maximum(tl.sqrt_rn(squares), 1.1754943508222875e-38)
    return tl.where(goal < 0.0, 1.0, tl.div_rn(goal, least))


@triton.jit
def met(parts, row, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """What all blocks of hidden units said of rows, in their order; other programs wrote it."""
    total = tl.load(parts + row, mask=row < ROWS, other=0.0, cache_modifier=".cg")
    for part in range(1, PARTS):
        total += tl.load(parts + part * ROWS + row, mask=row < ROWS, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def shared(row_shares, pulls, dots, dot, row, is_first, ROWS: tl.constexpr):
    """On the way back: a row's share, and what of W~ the gradient loses; the first block leaves the products with W~."""
    there = row < ROWS
    tl.store(dots + row, dot, mask=there & is_first)
    return tl.load(row_shares + row, mask=there, other=0.0), dot * tl.load(pulls + row, mask=there, other=0.0)
