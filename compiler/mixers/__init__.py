"""The kinds of the language: one file each, one row each. A new kind is its file, an import and a row."""

from __future__ import annotations

from attnc.compiler.mixer import Mixer
from attnc.compiler.mixers import (
    block_local,
    codebook,
    conv,
    feedback,
    full,
    insert,
    linear,
    memory,
    merge,
    persistent,
    power_of_two,
    recurrent,
    routed,
    sink,
    ssm,
    stride,
    summary,
    window,
)

_ALL: tuple[Mixer, ...] = (
    full.MIXER,
    window.MIXER,
    sink.MIXER,
    block_local.MIXER,
    stride.MIXER,
    power_of_two.MIXER,
    persistent.MIXER,
    summary.MIXER,
    codebook.MIXER,
    routed.MIXER,
    linear.MIXER,
    ssm.MIXER,
    memory.MIXER,
    recurrent.MIXER,
    conv.MIXER,
    feedback.MIXER,
    insert.MIXER,
    merge.MIXER,
)

MIXERS: dict[str, Mixer] = {mixer.name: mixer for mixer in _ALL}
