"""The kernel file of a member of the family of channel states: a skeleton with its constants set."""

from __future__ import annotations

from attnc.codegen.triton.emit import SKELETONS, fill
from attnc.compiler.families import Channels

SKELETON = "channel_scan"
NVIDIA = ("sm_80", "sm_90", "sm_100")


def blocks(state: int) -> dict[str, tuple[int, int, int]]:
    """Tokens and channels of a tile, and warps, for each architecture.

    A tile's states stay in registers: on NVIDIA's GPUs 2048 numbers of four warps leave room for the backward pass. With fewer
    than four tokens a thread Triton 3.7 makes no code for gfx942, whose warps are twice as wide: there it is 4096, or one warp.
    """
    width = 1 << (state - 1).bit_length()
    tokens = 8 if width == 256 else 16
    rows = dict.fromkeys(NVIDIA, (tokens, max(1, min(32 if width == 1 else 16, 2048 // (tokens * width))), 4))
    return rows | {"gfx942": (16, max(1, min(64, 256 // width)), 1 if width == 1 else 4), "any": (16, 16, 4)}


def emit(kernel: Channels) -> str:
    """The text of a kernel file. Same arguments, same bytes."""
    assert not kernel.complex_states, "kernels have real states"
    source = (SKELETONS / f"{SKELETON}.py").read_text(encoding="utf-8")
    rows = "\n".join(["{", *(f'    "{name}": {row!r},' for name, row in blocks(kernel.state).items()), "}"])
    parts = (kernel.step, kernel.write, kernel.read, kernel.weights)
    return fill(source, {}, {"STATE": repr(kernel.state), "PARTS": repr(parts), "BLOCKS": rows})
